"""The recipes of docs/extending.md work: each is done in a copy of the package, and used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/extending.md").read_text()
FILES = re.findall(r"^`(dpt/[^`]+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.S | re.M)


def code_after(words: str) -> str:
    """The code block that follows these words of the page."""
    match = re.search(re.escape(words) + r"[^\n]*\n\n```(?:python|text)\n(.*?)^```$", PAGE, re.S | re.M)
    assert match, words
    return match[1]


def edit(file: Path, anchor: str, new: str) -> None:
    text = file.read_text()
    assert anchor in text, f"{anchor!r} is no longer in {file.name}: the recipe has to change"
    file.write_text(text.replace(anchor, new, 1))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with every recipe done."""
    root = tmp_path_factory.mktemp("recipes")
    shutil.copytree(ROOT / "dpt", root / "dpt", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "ckpt").symlink_to(ROOT / "ckpt")
    for name, code in FILES:
        (root / name).write_text(code)
    guidance = root / "dpt/sampling/guidance.py"
    guidance.write_text(guidance.read_text() + "\n\n" + code_after("In `dpt/sampling/guidance.py`:"))
    detector = code_after("at the start of `open_detector`:")
    edit(root / "dpt/detect/registry.py", "    if name == ORACLE:\n", f"{detector}    if name == ORACLE:\n")
    methods = root / "dpt/methods/registry.py"
    edit(
        methods,
        "        DiffusionConfig(BASE),\n",
        "        DiffusionConfig(BASE),\n" + code_after("in `known_methods` in"),
    )
    edit(methods, "from dpt.methods.base", "from dpt.methods.blank import BlankConfig\nfrom dpt.methods.base")
    commands = root / "dpt/cli/main.py"
    edit(commands, '    "cache"', code_after("in `COMMANDS` in") + '    "cache"')
    edit(commands, '    "txt2img"', code_after("in `SCRIPTS` in") + '    "txt2img"')
    suites = root / "dpt/evaluation/suites/registry.py"
    edit(suites, "import geneval, ", "import geneval, pairs, ")
    old = re.search(r"^BY_RULE.*\n", suites.read_text(), re.M)
    assert old
    edit(suites, old[0], code_after("add it to this line, in `dpt/evaluation/suites/registry.py`:"))
    return root


def run(copy: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.nightly
def test_the_new_suite_detector_and_method_run_in_the_benchmark(copy: Path) -> None:
    few = ("--prompts", "1", "--per_prompt", "1", "--num_timesteps", "2", "--out", "outputs/bench")
    run(copy, "-m", "dpt", "bench", "run", "blank", "base", "--suite", "pairs", "--detector", "yes", *few)
    for method in ("blank", "base"):
        assert '"passed": true' in (copy / f"outputs/bench/{method}.jsonl").read_text()


@pytest.mark.nightly
def test_the_new_command_runs(copy: Path) -> None:
    assert run(copy, "-m", "dpt", "words", "--prompt", "two green crosses").strip() == "5 of 32 tokens"


@pytest.mark.nightly
@pytest.mark.parametrize("words", ["Use it in the loop", "Train it:"])
def test_the_new_guidance_and_task_run(copy: Path, words: str) -> None:
    run(copy, "-c", code_after(words))


@pytest.mark.nightly
def test_the_new_training_command_runs(copy: Path) -> None:
    few = ("--max_train_steps", "1", "--train_batch_size", "1", "--validation_steps", "0", "--output_dir", "logs")
    run(copy, "-m", "dpt", "train", "null-prompt", *few, "--run_name", "null")
    assert (copy / "logs/null/null_prompt/null_prompt.safetensors").is_file()


@pytest.mark.nightly
def test_recipes_respect_the_import_order(copy: Path) -> None:
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__", "golden*"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_house.py", "-k", "import or room")
