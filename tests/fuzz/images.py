"""Images in all formats that are read, and in some that are not."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from dpt.data.images import read_header, read_image
from dpt.evaluation.bench.run import open_image
from tests.fuzz.containers import mutate_chunk, png_chunk
from tests.fuzz.limits import MIB
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.parser import Parser, Target

ORIENTATION = 0x0112


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


RGB = Image.fromarray(pixels(24, 32, 3))
GREY = Image.fromarray(pixels(24, 32))
ALPHA = Image.fromarray(pixels(24, 32, 4), "RGBA")
DEEP = Image.fromarray(pixels(24, 32, 2).view(np.uint16)[..., 0])
JPEGS = (
    encoded(RGB, "JPEG"),
    encoded(GREY, "JPEG"),
    encoded(RGB.convert("CMYK"), "JPEG"),
    encoded(RGB, "JPEG", exif=rotated(6)),
    encoded(RGB, "JPEG", progressive=True, subsampling=0),
    encoded(RGB, "JPEG", comment=b"x" * 300),
)
PNGS = (
    encoded(RGB, "PNG"),
    encoded(ALPHA, "PNG"),
    encoded(RGB.quantize(16), "PNG"),
    encoded(DEEP, "PNG"),
    encoded(RGB.convert("1"), "PNG"),
    encoded(ALPHA.convert("LA"), "PNG"),
    encoded(RGB, "PNG", exif=rotated(8)),
    encoded(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180), RGB]),
    encoded(RGB.quantize(16), "PNG", transparency=3),
)
WEBPS = (
    encoded(RGB, "WEBP"),
    encoded(ALPHA, "WEBP", lossless=True),
    encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]),
    encoded(RGB, "WEBP", exif=rotated(3)),
)
BMPS = (encoded(RGB, "BMP"), encoded(RGB.quantize(16), "BMP"), encoded(RGB.convert("1"), "BMP"), encoded(GREY, "BMP"))


def png(width: int, height: int, *, depth: int = 8, kind: int = 2, body: bytes = b"", more: bytes = b"") -> bytes:
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, kind, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + more
        + png_chunk(b"IDAT", body or zlib.compress(bytes(64)))
        + png_chunk(b"IEND", b"")
    )


def zeros(count: int) -> bytes:
    """A thousandth of their size when compressed."""
    return zlib.compress(bytes(count), 1)


def webp_that_claims(side: int) -> bytes:
    """An image that declares sides of that length, in its canvas and in its only frame."""
    whole = bytearray(encoded(ALPHA, "WEBP", lossless=True, exif=rotated(1)))
    canvas, frame = whole.index(b"VP8X"), whole.index(b"VP8L")
    whole[canvas + 12 : canvas + 18] = (side - 1).to_bytes(3, "little") * 2
    whole[frame + 9 : frame + 13] = ((side - 1) | (side - 1) << 14 | 1 << 28).to_bytes(4, "little")
    return bytes(whole)


SIDE = 20_000
HOSTILE = (
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"RIFF\x00\x00\x00\x00WEBP",
    b"BM",
    b"GIF89a",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b"II*\x00",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    encoded(RGB, "GIF"),
    encoded(RGB, "TIFF"),
    encoded(RGB, "ICO"),
    png(0, 0),
    png(0, 5),
    png(1, 1),
    png(8193, 8193),
    png(2**31 - 1, 2**31 - 1),
    png(2**31, 1),
    png(67_108_864, 1),
    png(2**26 + 1, 1),
    png(SIDE, SIDE, kind=0, depth=1, body=zeros(SIDE * (SIDE // 8 + 1))),
    png(8192, 8192, kind=0, depth=1, body=zeros(8192 * 1025)),
    png(8192, 8192, kind=0, depth=16, body=zeros(8192 * 16385)),
    png(8192, 8192, kind=6, body=zeros(8192 * 32769)),
    png(8, 8, more=png_chunk(b"zTXt", b"a\0\0" + zeros(64 * MIB))),
    png(8, 8, more=png_chunk(b"iCCP", b"a\0\0" + zeros(64 * MIB))),
    png(8, 8, more=png_chunk(b"tEXt", b"a\0" + b"b" * MIB) * 20),
    webp_that_claims(16_383),
    webp_that_claims(8192),
    b"BM" + bytes(12) + (40).to_bytes(4, "little") + (2**30).to_bytes(4, "little") * 2 + bytes(28),
    b"BM" + bytes(12) + (40).to_bytes(4, "little") + (100_000).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24),
)


def mutate_image(content: bytes, rng: Random) -> bytes:
    png_file = content.startswith(b"\x89PNG")
    return mutate_chunk(content, rng) if png_file and rng.random() < 0.7 else mutate_bytes(content, rng)


def training_image(samples: tuple[bytes, ...]) -> Any:
    def make(folder: Path) -> Target:
        file = folder / "a picture"

        def read() -> None:
            header = read_header(file)
            image, _ = read_image(file)
            assert image.mode == "RGB" and image.size == header.size

        return Target(file, samples, read)

    return make


def generated_image(folder: Path) -> Target:
    file = folder / "a.png"
    return Target(file, PNGS, lambda: open_image(file))


MOST = 1536 * MIB
PARSERS = (
    Parser("pictures: JPEG", training_image(JPEGS), (mutate_image,), memory=MOST),
    Parser("pictures: PNG", training_image(PNGS), (mutate_image,), HOSTILE, MOST),
    Parser("pictures: WebP", training_image(WEBPS), (mutate_image,), memory=MOST),
    Parser("pictures: BMP", training_image(BMPS), (mutate_image,), memory=MOST),
    Parser("pictures: drawn by a benchmark", generated_image, (mutate_image,), HOSTILE, MOST),
)
