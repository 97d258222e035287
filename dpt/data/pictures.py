"""Picture files opened as upright RGB, whatever they are inside; what cannot be trusted is refused with its path.

Turned pictures (EXIF) are set upright. Transparency is laid on white. 16-bit grey keeps its upper 8 bits. Only common
formats are tried, and none with more pixels than a photograph has.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dpt.data.example import BoxCorners
from dpt.data.faults import BrokenPicture

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MOST_PIXELS = 2**26
ORIENTATION = 0x0112
Size = tuple[int, int]
"""Width, height."""


@dataclass(frozen=True)
class Header:
    """What is known of a picture before its pixels are decoded."""

    path: Path
    stored_size: Size
    orientation: int

    @property
    def size(self) -> Size:
        """Once upright."""
        width, height = self.stored_size
        return (height, width) if self.orientation >= 5 else (width, height)

    def upright(self, box: BoxCorners, recorded_size: Size | None) -> BoxCorners:
        """A box of the annotations, where it lies in the upright picture.

        Annotations of a turned picture may have been made on the picture as stored or as shown. The size that they
        record says which, unless the picture is square or only mirrored: then the picture is refused.
        """
        if recorded_size is not None and recorded_size not in (self.stored_size, self.size):
            there, said = ("x".join(map(str, size)) for size in (self.size, recorded_size))
            raise BrokenPicture.of(self.path, f"it is {there} pixels large, but its annotation says {said}")
        if self.orientation == 1:
            return box
        if self.size == self.stored_size or recorded_size is None:
            raise BrokenPicture.of(
                self.path, "it is stored turned (EXIF), and nothing says whether its boxes were drawn before or after"
            )
        return turn_box(box, self.stored_size, self.orientation) if recorded_size == self.stored_size else box


def read_header(path: Path, inside: Path | None = None) -> Header:
    """`inside`: the folder that it must lie in, links followed."""
    _refuse_leading_out(path, inside)
    with _opened(path) as image:
        return _header(path, image)


def read_picture(path: Path, inside: Path | None = None) -> tuple[Image.Image, Header]:
    """Upright, RGB. `inside`: the folder that it must lie in, links followed."""
    _refuse_leading_out(path, inside)
    with _opened(path) as image:
        header = _header(path, image)
        image.load()
        return _rgb(ImageOps.exif_transpose(image)), header


def _refuse_leading_out(path: Path, inside: Path | None) -> None:
    """The folder itself may be a link: data lie on other disks. A picture in it that is one was put there."""
    if inside is not None and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(inside)):
        raise BrokenPicture.of(path, f"it is a link that leads out of {inside}")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise BrokenPicture.of(path, f"{width}x{height} pixels are more than {MOST_PIXELS}")
                yield image
    except BrokenPicture:
        raise
    except FileNotFoundError:
        raise BrokenPicture.of(path, "there is no such file") from None
    except Exception as error:  # decoders meet broken bytes with errors of every kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenPicture.of(path, reason) from error


def _header(path: Path, image: Image.Image) -> Header:
    orientation = image.getexif().get(ORIENTATION, 1)
    return Header(path, image.size, orientation if orientation in range(1, 9) else 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        upper = deep >> 8 if deep.dtype.itemsize == 2 else np.clip(deep, 0, 65535) >> 8
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point pixels have no agreed range")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def turn_box(box: BoxCorners, stored_size: Size, orientation: int) -> BoxCorners:
    """From the picture as stored to the upright one."""
    (width, height), (x0, y0, x1, y1) = stored_size, box
    if orientation in (2, 3, 7, 8):
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = height - y1, height - y0
    return (y0, x0, y1, x1) if orientation >= 5 else (x0, y0, x1, y1)
