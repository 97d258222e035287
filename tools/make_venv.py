"""Create the virtual environment that the Makefile uses, or bring it up to date. Standard library only.

Nothing is installed into an environment that already satisfies the requirements, so several `make` commands can share
one. On x86 Linux without an NVIDIA card it installs the CPU build of torch: the plain wheel carries several GB of CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADVICE = """
This machine has no NVIDIA card, and your package index does not offer the CPU build of torch ({torch}+cpu).
Either tell pip where PyTorch keeps its CPU wheels (the "Get Started" page of pytorch.org shows the address):
    make {goal} TORCH_INDEX=<that address>
or accept the CUDA build, several GB, which also runs on a CPU:
    make {goal} TORCH_BUILD=cuda
"""
INSTALLED = """
import json, sys
from importlib.metadata import distributions
found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions() if d.metadata["Name"]}
print(json.dumps({"packages": found, "path": sys.path}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt")
    parser.add_argument("--goal", default="demo", help="the make target to name in advice")
    args = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 (this file is what an older Python runs)
        print(f"error: Python 3.11 or newer is needed; this is {platform.python_version()}", file=sys.stderr)
        return 2
    with locked(args.folder):
        if not missing(args.folder, args.requirements):
            return 0
        print(f"setting up {args.folder} (once; a few minutes)", flush=True)
        return install(args.folder, args.requirements, args.goal)


def install(folder: Path, requirements: Path, goal: str) -> int:
    if installed(folder) is None:
        venv.create(folder, with_pip=True, clear=folder.exists())
    torch = pins(ROOT / "requirements.txt")["torch"]
    if needs_cpu_build():
        index = os.environ.get("TORCH_INDEX", "")
        where = ["--extra-index-url", index] if index else []
        if pip(folder, "install", "--quiet", f"torch=={torch}+cpu", *where):
            print(ADVICE.format(torch=torch, goal=goal), file=sys.stderr)
            return 2
    if pip(folder, "install", "--quiet", "-r", str(requirements)):
        return 1
    # `compat` puts the checkout itself on the path. Otherwise a script that runs in the folder above a clone called
    # `dpt` would import the clone as a namespace package instead of the package inside it.
    editable = ("--config-settings", "editable_mode=compat", "--editable", str(ROOT))
    return pip(folder, "install", "--quiet", "--no-deps", *editable)


def missing(folder: Path, requirements: Path) -> list[str]:
    """The pins that the environment does not satisfy, and the checkout itself if it is not installed."""
    found = installed(folder)
    if found is None:
        return ["the environment"]
    wrong = [
        f"{name}=={version}"
        for name, version in pins(requirements).items()
        if found["packages"].get(name, "").split("+")[0] != version
    ]
    return wrong if str(ROOT) in found["path"] else [*wrong, str(ROOT)]


def installed(folder: Path) -> dict | None:
    """Packages and import path of the environment; None if there is none, or if it is of another Python."""
    try:
        config = (folder / "pyvenv.cfg").read_text()
        done = subprocess.run([python(folder), "-c", INSTALLED], capture_output=True, text=True, check=True, cwd=folder)
    except (OSError, subprocess.CalledProcessError):
        return None
    version = re.search(r"^version(?:_info)? = (\d+\.\d+)", config, re.M)
    same = version is not None and version[1] == f"{sys.version_info.major}.{sys.version_info.minor}"
    return json.loads(done.stdout) if same else None


def pins(file: Path) -> dict[str, str]:
    """Name and version of each pinned package of a requirements file, and of the files that it includes."""
    found: dict[str, str] = {}
    for line in file.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            found |= pins(file.parent / line[3:].strip())
        elif "==" in line:
            name, version = line.split("==")
            found[name.strip().lower().replace("_", "-")] = version.strip()
    return found


def needs_cpu_build() -> bool:
    """Only x86 Linux has to choose: elsewhere the plain wheel is the CPU build already."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return os.environ.get("TORCH_BUILD", "") != "cuda" and shutil.which("nvidia-smi") is None


def python(folder: Path) -> Path:
    # Absolute, but with its links kept: a resolved link would be the system's Python.
    return Path.cwd() / folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip(folder: Path, command: str, *words: str) -> int:
    # --no-compile: of some ten thousand files a command imports a tenth, and Python compiles those when it does.
    arguments = ("-m", "pip", "--disable-pip-version-check", command, "--no-compile", *words)
    return subprocess.run([python(folder), *arguments], check=False).returncode


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One `make` at a time sets up a folder; the others wait and then find it done."""
    if os.name == "nt":
        yield
        return
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name.lstrip('.')}.lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
