from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpt.data.images import ORIENTATION, read_header, read_image
from dpt.errors import BrokenImageError
from tests.fuzz.campaign import campaign
from tests.fuzz.images import webp_that_claims
from tests.fuzz.limits import MIB
from tests.fuzz.parser import Parser, Target

SIZE = (40, 24)
BOX = (2, 3, 14, 9)


def marked(mode: str = "RGB") -> Image.Image:
    """Black with a white box near its upper left corner."""
    image = Image.new("RGB", SIZE, "black")
    image.paste((255, 255, 255), BOX)
    return image.convert(mode)


def white_box(image: Image.Image) -> tuple[int, int, int, int]:
    box = image.convert("L").point(lambda value: 255 * (value > 127)).getbbox()
    assert box is not None
    return box


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_image_mode_is_converted_to_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    marked(mode).save(file, quality=95)
    image, header = read_image(file)
    assert (image.mode, image.size, header.size) == ("RGB", SIZE, SIZE)
    difference = np.asarray(image).astype(int) - np.asarray(marked())
    assert np.abs(difference).mean() < 4


def test_sixteen_bit_values_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image, _ = read_image(tmp_path / "a.png")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str) -> None:
    layer = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (0, 0, 2, 4))
    layer.convert(mode).save(tmp_path / "a.png")
    image, _ = read_image(tmp_path / "a.png")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 255, 255]


def save_rotated(file: Path, orientation: int, size: tuple[int, int] = SIZE) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = marked() if size == SIZE else marked().crop((0, 0, *size))
    image.save(file, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    save_rotated(tmp_path / "a.jpg", orientation)
    image, header = read_image(tmp_path / "a.jpg")
    assert image.size == header.size == read_header(tmp_path / "a.jpg").size
    assert image.size == (SIZE if orientation < 5 else SIZE[::-1])


@pytest.mark.parametrize("orientation", range(5, 9))
def test_boxes_annotated_before_rotation_are_rotated(tmp_path: Path, orientation: int) -> None:
    save_rotated(tmp_path / "a.jpg", orientation)
    image, header = read_image(tmp_path / "a.jpg")
    box_before_rotation = header.upright(BOX, recorded_size=SIZE)
    assert box_before_rotation == pytest.approx(white_box(image), abs=1.01)
    assert header.upright(box_before_rotation, recorded_size=SIZE[::-1]) == box_before_rotation, (
        "boxes annotated after the rotation are kept"
    )


@pytest.mark.parametrize(
    ("orientation", "size", "recorded"),
    [(2, SIZE, SIZE), (3, SIZE, SIZE), (4, SIZE, SIZE), (6, SIZE, None), (6, (20, 20), (20, 20))],
)
def test_ambiguous_rotation_of_boxes_is_refused(
    tmp_path: Path, orientation: int, size: tuple[int, int], recorded: tuple[int, int] | None
) -> None:
    save_rotated(tmp_path / "a.jpg", orientation, size)
    with pytest.raises(BrokenImageError, match=r"a\.jpg cannot be used: EXIF says that it is rotated"):
        read_header(tmp_path / "a.jpg").upright(BOX, recorded)


def test_size_other_than_annotated_is_refused(tmp_path: Path) -> None:
    marked().save(tmp_path / "a.png")
    header = read_header(tmp_path / "a.png")
    assert header.upright(BOX, None) == header.upright(BOX, SIZE) == BOX
    with pytest.raises(BrokenImageError, match="it has 40x24 pixels, but its annotation records 400x240"):
        header.upright(BOX, (400, 240))


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8193, 8193), (10_000, 10_000), (100_000, 100_000)])
def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png_that_claims(*size))
    with pytest.raises(BrokenImageError, match="pixels"):
        read_image(tmp_path / "a.png")


def test_missing_and_invalid_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match="no such file"):
        read_image(tmp_path / "a.jpg")
    for content in (b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(BrokenImageError, match="cannot be used") as caught:
            read_image(tmp_path / "a.jpg")
        assert caught.value.path == str(tmp_path / "a.jpg")
    with pytest.raises(BrokenImageError):
        read_image(tmp_path)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_corrupted_bytes_decode_or_raise_broken_image_error(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    marked().save(buffer, kind)
    whole = buffer.getvalue()
    rng = np.random.default_rng(0)
    file = tmp_path / "a"
    broken = 0
    for nth in range(150):
        content = bytearray(whole)
        if nth % 2:
            content = content[: int(rng.integers(len(content)))]
        for at in rng.integers(len(content), size=3) if content else []:
            content[at] = int(rng.integers(256))
        file.write_bytes(content)
        try:
            assert read_image(file)[0].mode == "RGB"
        except BrokenImageError as error:
            broken += 1
            assert "\n" not in str(error)
    assert broken > 50


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_animation_is_read_as_its_first_frame(tmp_path: Path, kind: str) -> None:
    still = marked()
    still.save(tmp_path / f"a.{kind}", save_all=True, append_images=[Image.new("RGB", SIZE, "red")], lossless=True)
    image, header = read_image(tmp_path / f"a.{kind}")
    assert white_box(image) == BOX and header.size == SIZE


def test_refused_bomb_is_named_and_uses_no_memory(tmp_path: Path) -> None:
    """Within 64 MiB and a second; decoded they would have 400 million pixels and more."""
    bombs = (png_that_claims(20_000, 20_000), png_that_claims(8193, 8192), webp_that_claims(16_383))

    def make(folder: Path) -> Target:
        file = folder / "bomb"

        def read() -> None:
            with pytest.raises(BrokenImageError, match=r"bomb cannot be used: .*(\d+x\d+|\d{8,}) pixels"):
                read_image(file)

        return Target(file, bombs, read)

    result = campaign(Parser("bombs", make, memory=64 * MIB), len(bombs), seconds=1)
    assert not result.faults, result.faults
    assert result.accepted == len(bombs) and result.peak_bytes < 32 * MIB
