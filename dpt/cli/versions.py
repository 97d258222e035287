"""Which versions of what produced a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import dpt

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "pillow")


def versions() -> dict[str, str]:
    found = {"dpt": dpt.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
