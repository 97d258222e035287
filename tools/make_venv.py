"""Make or refresh the virtual environment that the Makefile uses. Standard library only.

The CPU build of torch is what a machine without an NVIDIA card gets: on x86 Linux the plain wheel carries several GB of
CUDA, so there the `+cpu` build is asked for by name.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADVICE = """
This machine has no NVIDIA card, and your package index does not offer the CPU build of torch ({torch}+cpu).
Either tell pip where PyTorch keeps its CPU wheels (the "Get Started" page of pytorch.org shows the address):
    make {goal} TORCH_INDEX=<that address>
or accept the CUDA build, several GB, which also runs on a CPU:
    make {goal} TORCH_BUILD=cuda
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
    stamp = args.folder / f"{args.requirements.stem}.sha256"
    wanted = fingerprint(args.requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    print(f"setting up {args.folder} (once; a few minutes)", flush=True)
    venv.create(args.folder, with_pip=True, clear=not (args.folder / "pyvenv.cfg").exists())
    python = args.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    torch = next(line.split("==")[1].strip() for line in lines(ROOT / "requirements.txt") if line.startswith("torch=="))
    if wants_cpu_build():
        index = os.environ.get("TORCH_INDEX", "")
        where = ["--extra-index-url", index] if index else []
        if pip(python, "install", "--quiet", f"torch=={torch}+cpu", *where):
            print(ADVICE.format(torch=torch, goal=args.goal), file=sys.stderr)
            return 2
    if pip(python, "install", "--quiet", "-r", str(args.requirements)):
        return 1
    if pip(python, "install", "--quiet", "--no-deps", "--editable", str(ROOT)):
        return 1
    stamp.write_text(wanted)
    return 0


def wants_cpu_build() -> bool:
    """Only x86 Linux has to choose: elsewhere the plain wheel is the CPU build already."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return os.environ.get("TORCH_BUILD", "") != "cuda" and shutil.which("nvidia-smi") is None


def pip(python: Path, *words: str) -> int:
    return subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *words], check=False).returncode


def fingerprint(requirements: Path) -> str:
    """Of everything the environment depends on: the requirement files, the project file, the interpreter."""
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for file in (requirements, ROOT / "requirements.txt", ROOT / "pyproject.toml"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


if __name__ == "__main__":
    sys.exit(main())
