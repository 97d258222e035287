"""Puts the embedded models and checkpoints into the wheel, as dpt/ckpt; everything else is in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCheckpoints(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("ckpt", Path(self.build_lib) / "dpt" / "ckpt", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithCheckpoints})
