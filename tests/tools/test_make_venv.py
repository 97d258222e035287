"""The script that sets up the environment: when it is up to date, and imports from outside the clone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def make_venv() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_venv", ROOT / "tools/make_venv.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pins_of_included_files_are_read(make_venv: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("torch==2.13.0  # a comment\nhuggingface_hub==2.4.0\n")
    (tmp_path / "dev.txt").write_text("-r base.txt\npytest==9.2.0\n")
    expected = {"torch": "2.13.0", "huggingface-hub": "2.4.0", "pytest": "9.2.0"}
    assert make_venv.pins(tmp_path / "dev.txt") == expected


def test_up_to_date_environment_is_not_changed(
    make_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reinstalling into an environment that another process runs from fails with `Text file busy`."""
    installed = {"packages": {"torch": "2.13.0+cpu", "pytest": "9.2.0"}, "path": [str(make_venv.ROOT)]}
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\npytest==9.2.0\n")
    monkeypatch.setattr(make_venv, "installed", lambda folder: installed)
    monkeypatch.setattr(make_venv, "install", lambda *_: pytest.fail("it installed again"))
    words = ["make_venv", str(tmp_path / "v"), "--requirements", str(tmp_path / "requirements.txt")]
    monkeypatch.setattr(sys, "argv", words)
    assert make_venv.main() == 0
    installed["packages"]["pytest"] = "9.1.0"
    assert make_venv.missing(tmp_path / "v", tmp_path / "requirements.txt") == ["pytest==9.2.0"]


def test_an_existing_environment_is_updated_without_replacing_its_python(
    make_venv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "v"
    venv.create(folder, with_pip=False)
    assert make_venv.installed(folder) is not None
    monkeypatch.setattr(venv, "create", lambda *_, **__: pytest.fail("it created the environment again"))
    monkeypatch.setattr(make_venv, "pip", lambda *_: 0)
    assert make_venv.install(folder, ROOT / "requirements.txt", "test") == 0
    assert make_venv.installed(tmp_path / "nothing there") is None


def test_the_package_is_found_beside_a_clone_of_the_same_name(tmp_path: Path) -> None:
    """In the folder above a clone called `dpt`, the clone must not be imported as a namespace package."""
    (tmp_path / "dpt" / "data").mkdir(parents=True)
    path = [str(tmp_path), str(ROOT)]  # the working directory, then what the editable install adds
    program = f"import sys; sys.path[:0] = {path}; import dpt.data.example as e; print(e.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "dpt/data/example.py"
    assert "editable_mode=compat" in (ROOT / "tools/make_venv.py").read_text()
