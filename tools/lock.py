"""Write requirements.lock: every package with its hashes; and requirements.audit.md: why it is there, and its licence.

Run it in an environment that requirements-dev.txt was installed into (`make test` makes one): what depends on what is
read from there, the hashes come from pip. Standard library and pip only. torch is left out, since a machine gets the
build that suits it (see tools/make_venv.py): its CPU build is in requirements-cpu.lock.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
LIBC = (*range(17, 36), 5, 12)
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in LIBC),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
]
TORCH = "torch"
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
"""PyTorch keeps its CPU builds elsewhere, and not every mirror of them has all Pythons: that of this one is locked."""
HEAD = """# Every package that requirements.txt and requirements-dev.txt come to, for Linux on x86-64 and Python
# {pythons}, with the SHA-256 of each wheel. Written by tools/lock.py; do not edit. torch is not here:
# install its CPU build from requirements-cpu.lock, or the one that suits the machine, and then
#     pip install --no-deps --require-hashes -r requirements.lock
"""
HEAD_CPU = """# The CPU build of torch for Linux on x86-64 and Python {pythons}. Written by tools/lock.py; do not edit.
# pip does not know where PyTorch keeps its CPU wheels: give --extra-index-url, or TORCH_INDEX to make.
"""


@dataclass
class Package:
    name: str
    version: str
    needed_by: set[str] = field(default_factory=set)
    hashes: set[str] = field(default_factory=set)
    licence: str = "not said"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the lock has what is pinned; no network")
    if parser.parse_args().check:
        faults = out_of_step(ROOT)
        print("\n".join(faults) or "the lock and the requirements are in step")
        return 1 if faults else 0
    packages = closure([*pins(ROOT / "requirements.txt"), *pins(ROOT / "requirements-dev.txt")])
    others = {name: one for name, one in packages.items() if name != TORCH}
    warnings = [add_hashes(others, python) for python in PYTHONS] + [add_hashes({TORCH: packages[TORCH]}, HERE)]
    write(packages, "".join(warnings))
    return 0


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: Path) -> list[str]:
    """Its own lines, without those that name another file."""
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def locked(file: Path) -> dict[str, str]:
    """Name and version of each package of a lock."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\]+)", file.read_text(), re.M)
    return {canonical(name): version for name, version in found}


def out_of_step(root: Path) -> list[str]:
    lock = locked(root / "requirements.lock") | {
        name: version.split("+")[0] for name, version in locked(root / "requirements-cpu.lock").items()
    }
    requirements = dict(
        line.split("==") for name in ("requirements.txt", "requirements-dev.txt") for line in pins(root / name)
    )
    return [
        f"{name} is pinned to {version}, and the lock has {lock.get(canonical(name), 'none of it')}"
        for name, version in requirements.items()
        if lock.get(canonical(name)) != version
    ]


def closure(requirements: Iterable[str]) -> dict[str, Package]:
    """The requirements and all that they need, in the versions that are installed."""
    found: dict[str, Package] = {}
    left = [(Requirement(line), "requirements") for line in requirements]
    seen: set[tuple[str, str]] = set()
    while left:
        requirement, by = left.pop()
        name = canonical(requirement.name)
        if name not in found:
            found[name] = _installed(name)
        found[name].needed_by.add(by)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                left += [(one, name) for one in _requirements(name, extra)]
    return found


def _installed(name: str) -> Package:
    try:
        about = distribution(name)
    except PackageNotFoundError:
        raise SystemExit(f"error: {name} is not installed here: run this in the environment of `make test`") from None
    classifiers = [one.rpartition(" :: ")[2] for one in about.metadata.get_all("Classifier") or () if "License" in one]
    whole = (about.metadata.get("License") or "").strip().splitlines()
    licence = about.metadata.get("License-Expression") or ", ".join(classifiers) or (whole[0] if whole else "not said")
    return Package(name, about.version.split("+")[0], licence=licence)


def _requirements(name: str, extra: str) -> list[Requirement]:
    """On Linux on x86-64, for any of the Pythons; of torch none of those that only its CUDA build has."""
    found = [Requirement(line) for line in distribution(name).requires or ()]
    machine = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    pythons = [
        {**machine, "extra": extra, "python_version": python, "python_full_version": f"{python}.0"}
        for python in PYTHONS
    ]
    return [
        one
        for one in found
        if (one.marker is None and not extra) or (one.marker is not None and any(map(one.marker.evaluate, pythons)))
    ]


def add_hashes(packages: Mapping[str, Package], python: str) -> str:
    """Of the wheels that pip would take there. Nothing is installed. What pip warns of is returned."""
    with tempfile.TemporaryDirectory() as folder:
        pinned, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        local = "+cpu" if TORCH in packages else ""
        pinned.write_text("".join(f"{one.name}=={one.version}{local}\n" for one in packages.values()))
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--dry-run",
                "--ignore-installed",
                "--no-deps",
                "--target",
                str(Path(folder, "nowhere")),
                "--only-binary",
                ":all:",
                "--python-version",
                python,
                *platforms,
                "--report",
                str(report),
                "-r",
                str(pinned),
            ],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        for one in json.loads(report.read_text())["install"]:
            digest = one["download_info"]["archive_info"]["hashes"]["sha256"]
            packages[canonical(one["metadata"]["name"])].hashes.add(digest)
        return done.stderr


def write(packages: Mapping[str, Package], warnings: str, root: Path = ROOT) -> None:
    pythons = ", ".join(PYTHONS)
    others = [one for name, one in sorted(packages.items()) if name != TORCH]
    torch = packages[TORCH]
    (root / "requirements.lock").write_text(HEAD.format(pythons=pythons) + "".join(map(_line, others)))
    cpu = Package(TORCH, f"{torch.version}+cpu", hashes=torch.hashes)
    (root / "requirements-cpu.lock").write_text(HEAD_CPU.format(pythons=HERE) + _line(cpu))
    rows = [
        f"| {name} | {one.version} | {one.licence} | {', '.join(sorted(one.needed_by))} |"
        for name, one in sorted(packages.items())
    ]
    yanked = [line for line in warnings.splitlines() if "yanked" in line]
    told = "\n".join(yanked) or "Of no package pip says that its authors have withdrawn (yanked) that version."
    (root / "requirements.audit.md").write_text(
        "# What is installed, and why\n\nWritten by tools/lock.py.\n\n"
        "| package | version | licence, as it says itself | needed by |\n|---|---|---|---|\n"
        f"{chr(10).join(rows)}\n\n{told}\n"
    )


def _line(one: Package) -> str:
    hashes = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(one.hashes))
    return f"{one.name}=={one.version}{hashes}\n"


if __name__ == "__main__":
    sys.exit(main())
