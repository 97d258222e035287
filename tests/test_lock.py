"""The lock file agrees with the requirements: all pins, a hash for every package, no surplus packages."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-cpu.lock"]


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "tools/lock.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["lock"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lock_agrees_with_the_pins(lock: ModuleType) -> None:
    assert lock.out_of_step(ROOT) == []


def test_changed_pin_is_detected(lock: ModuleType, tmp_path: Path) -> None:
    for file in [*LOCKS, ROOT / "requirements.txt", ROOT / "requirements-dev.txt"]:
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "requirements.txt").write_text((ROOT / "requirements.txt").read_text() + "scipy==0.1\nnothing==1\n")
    assert lock.out_of_step(tmp_path) == [
        f"scipy is pinned to 0.1, and the lock has {lock.locked(LOCKS[0])['scipy']}",
        "nothing is pinned to 1, and the lock has none of it",
    ]


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.name)
def test_every_package_has_its_hashes(file: Path) -> None:
    entries = re.split(r"(?<!\\)\n", re.sub(r"^#.*\n", "", file.read_text(), flags=re.M).strip())
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry


def test_every_package_is_required(lock: ModuleType) -> None:
    """Compared with the installed versions."""
    pins = [*lock.pins(ROOT / "requirements.txt"), *lock.pins(ROOT / "requirements-dev.txt")]
    needed = lock.closure(pins)
    locked = lock.locked(LOCKS[0]) | lock.locked(LOCKS[1])
    assert set(locked) == set(needed)
    assert {name: package.version for name, package in needed.items()} == {
        n: v.split("+")[0] for n, v in locked.items()
    }


def test_what_the_code_imports_is_pinned(lock: ModuleType) -> None:
    called = {"PIL": "pillow"}
    pinned = set(lock.locked(LOCKS[0])) | {"torch"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    optional = {lock.canonical(line) for line in lock.pins(ROOT / "requirements-gpu.txt")}
    optional |= {lock.canonical(re.split(r"[<>=\[]", line)[0]) for line in (*extras["demo"], *extras["track"])}
    for file in (ROOT / "dpt").rglob("*.py"):
        for name in imported(file):
            if name not in sys.stdlib_module_names and name != "dpt":
                assert lock.canonical(called.get(name, name)) in pinned | optional, (file, name)


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_every_package_is_audited(lock: ModuleType) -> None:
    audited = re.findall(r"^\| ([a-z0-9-]+) \| (\d\S*) \|", (ROOT / "requirements.audit.md").read_text(), re.M)
    assert dict(audited) == {n: v.split("+")[0] for file in LOCKS for n, v in lock.locked(file).items()}
