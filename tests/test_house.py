"""The rules of the house that a machine can hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "dpt").rglob("*.py"))

# A room may import its own rank or below, never above.
RANK = {
    "errors": 0,
    "records": 0,
    "plain_json": 0,
    "folders": 0,
    "weights": 0,
    "backbone": 1,
    "objectives": 2,
    "adapter": 2,
    "lora": 2,
    "checkpoints": 2,
    "data": 2,
    "training": 3,
    "sampling": 3,
    "evaluation": 3,
    "pocket": 4,
    "cli": 5,
}


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "dpt" else [f"dpt.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("dpt.")}
    return rooms


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "dpt").parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    room = room_of(file)
    if room.startswith("__"):  # the package itself
        return
    assert room in RANK, f"{room} has no place in the house: give it a rank here"
    above = {other for other in imported_rooms(file) if RANK[other] > RANK[room]}
    assert not above, f"{file.name} in {room} imports {sorted(above)}"


def test_evaluation_and_sampling_keep_apart_from_training() -> None:
    for file in SOURCES:
        if room_of(file) in ("sampling", "evaluation"):
            assert "training" not in imported_rooms(file), file


def test_the_judge_needs_no_torch() -> None:
    loaded = "import sys, dpt.claims.judge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=False).returncode == 0


def test_every_room_is_a_package() -> None:
    rooms = {file.parent for file in SOURCES}
    assert not [room for room in rooms if not (room / "__init__.py").exists()]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_are_small(file: Path) -> None:
    limit = 250 if file.name == "loop.py" else 400
    assert len(file.read_text().splitlines()) <= limit


FORBIDDEN = [
    r"\bimport pickle\b",
    r"\bpickle\.loads?\(",
    r"(?<![\w.])eval\(",
    r"\bliteral_eval\b",
    r"trust_remote_code=True",
    r"torch\.load\((?!.*weights_only=True)",
    r"except:",
    r"verify=False",
]


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_nothing_unsafe(pattern: str) -> None:
    files = [*SOURCES, *ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py")]
    found = [
        f"{file.relative_to(ROOT)}: {line}"
        for file in files
        for line in file.read_text().splitlines()
        if re.search(pattern, line)
    ]
    assert not found


def test_only_the_command_line_room_parses_arguments() -> None:
    for file in SOURCES:
        if room_of(file) != "cli":
            assert not re.search(r"^\s*(import|from) (argparse|tyro)\b", file.read_text(), re.M), file
