"""The pictures of a method as files: whole ones only."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

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
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"the picture {file} is missing: draw it again") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
        raise UserError(f"the picture {file} is damaged or only half written: delete it and draw it again") from None
