"""Image files read safely, framed to squares with their boxes, and converted to and from tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dpt.distributed import Processes
from dpt.errors import BrokenImageError, UserError
from dpt.generation_defaults import MAX_SIDE
from dpt.untrusted import open_regular

if TYPE_CHECKING:
    from torch import Tensor

    from dpt.backbone import Backbone
    from dpt.backbone.base import ImageSizes
    from dpt.data.example import BoxCentre, BoxCorners

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

MAX_PIXELS = 2**26

LARGEST_FILE = 2**30
"""Bytes of an image file."""

ORIENTATION = 0x0112

Size = tuple[int, int]
"""Width, height."""


@dataclass(frozen=True)
class ImageHeader:
    """Size and EXIF orientation of an image, known without decoding its pixels."""

    path: Path
    stored_size: Size
    orientation: int

    @property
    def size(self) -> Size:
        """After applying the orientation."""
        width, height = self.stored_size
        return (height, width) if self.orientation >= 5 else (width, height)

    def upright(self, box: BoxCorners, recorded_size: Size | None) -> BoxCorners:
        """An annotated box in the coordinates of the upright image.

        Boxes of a rotated image may refer to the stored or the upright image. The recorded size decides, unless
        the image is square or only mirrored: then it raises BrokenImageError.
        """
        if recorded_size is not None and recorded_size not in (self.stored_size, self.size):
            actual, recorded = ("x".join(map(str, size)) for size in (self.size, recorded_size))
            raise BrokenImageError.of(self.path, f"it has {actual} pixels, but its annotation records {recorded}")
        if self.orientation == 1:
            return box
        if self.size == self.stored_size or recorded_size is None:
            raise BrokenImageError.of(
                self.path,
                "EXIF says that it is rotated, and whether its boxes were drawn before or after that is unknown",
            )
        return turn_box(box, self.stored_size, self.orientation) if recorded_size == self.stored_size else box


def read_header(path: Path, inside: Path | None = None) -> ImageHeader:
    """`inside`: the folder that it must lie in after following links."""
    _refuse_outside(path, inside)
    with _open_image(path) as image:
        return _header(path, image)


def read_image(path: Path, inside: Path | None = None) -> tuple[Image.Image, ImageHeader]:
    """Upright and RGB. `inside`: the folder that it must lie in after following links."""
    _refuse_outside(path, inside)
    with _open_image(path) as image:
        header = _header(path, image)
        image.load()
        return _rgb(ImageOps.exif_transpose(image)), header


def _refuse_outside(path: Path, inside: Path | None) -> None:
    """The folder itself may be a link to another disk; an image in it may not lead out of it."""
    if inside is not None and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(inside)):
        raise BrokenImageError.of(path, f"it is a link that leads out of {inside}")


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_regular(path, LARGEST_FILE) as stream, Image.open(stream, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise BrokenImageError.of(path, f"{width}x{height} pixels are more than {MAX_PIXELS}")
                yield image
    except BrokenImageError:
        raise
    except FileNotFoundError:
        raise BrokenImageError.of(path, "there is no such file") from None
    except UnidentifiedImageError:
        raise BrokenImageError.of(path, f"cannot identify image file (formats: {', '.join(FORMATS)})") from None
    except Exception as error:  # image decoders raise many kinds of errors for broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenImageError.of(path, reason) from error


def is_whole_image(file: Path) -> bool:
    """Whether the file exists and is a complete PNG. Verifies checksums without decoding pixels."""
    try:
        with Image.open(file, formats=("PNG",)) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return False
    return True


def _header(path: Path, image: Image.Image) -> ImageHeader:
    orientation = image.getexif().get(ORIENTATION, 1)
    return ImageHeader(path, image.size, orientation if orientation in range(1, 9) else 1)


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
    """From stored to upright coordinates."""
    (width, height), (x0, y0, x1, y1) = stored_size, box
    if orientation in (2, 3, 7, 8):
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = height - y1, height - y0
    return (y0, x0, y1, x1) if orientation >= 5 else (x0, y0, x1, y1)


PREPROCESSING = 1
"""Version of the preprocessing, part of a cache's key: raise it when the same file comes to give other pixels."""


LEAST_IN_VIEW = 0.5
"""Fraction of a box's area that must be left in the crop; otherwise the region is dropped."""


@dataclass(frozen=True)
class Framing:
    """Resize the whole image to a square (as published), or crop the largest square in its middle."""

    resolution: int
    center_crop: bool = False
    random_flip: bool = False
    with_sizes: bool = False
    """Whether examples record their image's sizes, for a model that is conditioned on them."""

    @classmethod
    def for_model(
        cls, backbone: Backbone, resolution: int | None, center_crop: bool = False, random_flip: bool = False
    ) -> Framing:
        """Without a resolution, the side that the model was trained at."""
        height, width = backbone.default_image_size
        if resolution is None and height != width:
            raise UserError(
                f"the model was trained at {width}x{height}; choose the side of the training square with --resolution"
            )
        side = height if resolution is None else resolution
        if not 1 <= side <= MAX_SIDE:
            raise UserError(f"--resolution must be between 1 and {MAX_SIDE} pixels, not {side}")
        backbone.latent_size(side, side)
        return cls(side, center_crop, random_flip, backbone.takes_sizes)

    def window(self, size: Size) -> BoxCorners:
        """The visible part of the image, in pixels."""
        width, height = size
        if not self.center_crop:
            return 0, 0, width, height
        side = min(width, height)
        x0, y0 = (width - side) // 2, (height - side) // 2
        return x0, y0, x0 + side, y0 + side

    def sizes(self, size: Size) -> ImageSizes | None:
        """Of an image of this width and height."""
        from dpt.backbone.base import ImageSizes

        if not self.with_sizes:
            return None
        (width, height), (left, top, right, bottom) = size, self.window(size)
        scaled = [self.resolution / (bottom - top), self.resolution / (right - left)]
        crop = round(top * scaled[0]), round(left * scaled[1])
        return ImageSizes((height, width), (self.resolution, self.resolution), crop)

    def pixels(self, image: Image.Image) -> Tensor:
        """(3, resolution, resolution) in [-1, 1]."""
        import torch

        window = self.window(image.size)
        square = (self.resolution, self.resolution)
        if image.size != square:
            image = image.resize(square, Image.Resampling.BICUBIC, box=window)
        values = torch.from_numpy(np.array(image, dtype=np.float32))
        return values.permute(2, 0, 1).contiguous() / 127.5 - 1

    def box(self, box: BoxCorners, size: Size) -> BoxCentre | None:
        """The visible part of a box, cxcywh relative to the window; None if too little is visible."""
        left, top, right, bottom = self.window(size)
        x0, x1 = max(box[0], left), min(box[2], right)
        y0, y1 = max(box[1], top), min(box[3], bottom)
        area = (box[2] - box[0]) * (box[3] - box[1])
        if x1 <= x0 or y1 <= y0 or (x1 - x0) * (y1 - y0) < LEAST_IN_VIEW * area:
            return None
        width, height = right - left, bottom - top
        return (
            ((x0 + x1) / 2 - left) / width,
            ((y0 + y1) / 2 - top) / height,
            (x1 - x0) / width,
            (y1 - y0) / height,
        )


def to_pil(image: Tensor) -> Image.Image:
    """A tensor (3,H,W) in [-1,1], clipped and rounded as diffusers does it."""
    import torch

    levels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def from_pil(picture: Image.Image) -> Tensor:
    """An image as a tensor (3,H,W) in [-1,1]."""
    import torch

    levels = torch.from_numpy(np.array(picture.convert("RGB")))
    return levels.permute(2, 0, 1).float() / 127.5 - 1


class NamedImage(Protocol):
    @property
    def file_name(self) -> str: ...


N = TypeVar("N", bound=NamedImage)


def draw_missing(
    batches: Sequence[Sequence[N]],
    folder: Path,
    draw: Callable[[Sequence[N]], Iterable[Image.Image]],
    group: Processes,
    on_done: Callable[[int], None],
) -> None:
    """Draw and save the batches of which the folder lacks an image or holds a damaged one. Processes share them.

    Rounding depends on the batch, so a batch is drawn whole: an interruption changes no image.
    """

    def draw_own() -> None:
        for batch in group.share(batches):
            if not all(is_whole_image(folder / image.file_name) for image in batch):
                for image, picture in zip(batch, draw(batch), strict=True):
                    save_png(picture, folder / image.file_name)
            on_done(len(batch))

    group.gather(draw_own)


def save_png(image: Image.Image, file: Path) -> None:
    """A reader sees the whole file or none. It is not flushed: an image that a power cut loses is sampled again."""
    work = file.with_suffix(".tmp")
    try:
        image.save(work, format="PNG")
        work.replace(file)
    finally:
        work.unlink(missing_ok=True)
