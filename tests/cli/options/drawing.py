"""`txt2img.py` from its options to its folder, and what is to be seen there."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image

from dpt.cli.txt2img.main import run
from dpt.cli.txt2img.options import Options
from dpt.distributed import Processes
from tests.cli.options.rehearsal import opened_to_be_changed


class Drawing:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = json.loads((folder / "manifest.json").read_text())

    @property
    def names(self) -> list[str]:
        return sorted(file.name for file in self.folder.iterdir())

    @property
    def pictures(self) -> list[str]:
        """What each shows, in the order of the record."""
        return [hashlib.sha256((self.folder / one["file"]).read_bytes()).hexdigest() for one in self.record["images"]]

    @property
    def size(self) -> tuple[int, int]:
        with Image.open(self.folder / self.record["images"][0]["file"]) as picture:
            return picture.size


def drawn(options: Options) -> Drawing:
    before = set(options.outdir.glob("*"))
    with ExitStack() as around:
        around.enter_context(patch("dpt.cli.txt2img.model.open_backbone", opened_to_be_changed))
        around.enter_context(patch("dpt.backbone.device.cpu_supports_bfloat16", lambda: True))
        run(options, Processes())
    (folder,) = set(options.outdir.glob("*")) - before
    return Drawing(folder)
