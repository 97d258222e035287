"""The pictures of a method as files: whole ones only."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dpt.data.faults import BrokenPicture
from dpt.data.pictures import read_picture
from dpt.errors import UserError
from dpt.evaluation.bench.asked import Asked


def keep(picture: Image.Image, one: Asked, folder: Path) -> None:
    file = folder / one.file
    file.parent.mkdir(parents=True, exist_ok=True)
    work = file.with_suffix(".tmp")
    picture.save(work, format="PNG")
    work.replace(file)
    if one.layout == "folders":
        (folder / one.prompt.id / "metadata.jsonl").write_text(f"{one.prompt.source}\n")


def open_picture(file: Path) -> Image.Image:
    if not file.exists():
        raise UserError(f"the picture {file} is missing: draw it again")
    try:
        return read_picture(file)[0]
    except BrokenPicture as broken:
        what = "is damaged or only half written: delete it and draw it again"
        raise UserError(f"the picture {file} {what} ({broken.reason})") from None
