"""Build the documentation site: `make docs`. Pages keep their places, so that links work in the site and on the hub."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

STAGE = ROOT / "build" / "docs"

PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "requirements.audit.md",
    "docs/**/*.md",
    "ckpt/**/README.md",
    "integrations/**/README.md",
    "CITATION.cff",
    "LICENSE",
)

IMAGES = ("docs/**/*.png", "ckpt/**/*.png")

LINKED = ("docs/**/*.json", "docs/**/*.jsonl", "docs/**/*.html", "docs/**/*.ipynb")
"""Records and notebooks that pages link to."""


def stage() -> int:
    """Copy what the site shows; returns the number of files."""
    shutil.rmtree(STAGE, ignore_errors=True)
    files = {file for pattern in (*PAGES, *IMAGES, *LINKED) for file in ROOT.glob(pattern)}
    for file in files:
        target = STAGE / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return len(files)


def main() -> int:
    print(f"{stage()} files")
    build = shutil.which("zensical", path=str(Path(sys.executable).parent)) or shutil.which("zensical")
    if build is None:
        print("the site needs zensical: pip install 'dpt[docs]'", file=sys.stderr)
        return 1
    return subprocess.run([build, "build", "--clean", "--strict"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
