from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpt.detect.accuracy import open_round_trip
from dpt.errors import UserError


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**blocks, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1)
    folder = tmp_path_factory.mktemp("model")
    vae.save_pretrained(folder / "vae")
    return folder


def test_the_round_trip_keeps_sizes_and_does_not_depend_on_the_batch(tiny_vae: Path) -> None:
    images = list(np.random.default_rng(7).integers(0, 256, (3, 16, 16, 3), np.uint8))
    together = open_round_trip(tiny_vae, batch=2)(images)
    alone = [open_round_trip(tiny_vae / "vae")([image])[0] for image in images]
    assert [image.shape for image in together] == [(16, 16, 3)] * 3
    assert all(image.dtype == np.uint8 for image in together)
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(together, alone, strict=True)) <= 1


def test_sides_not_divisible_by_the_vae_factor_are_an_error(tiny_vae: Path) -> None:
    with pytest.raises(UserError, match="divisible"):
        open_round_trip(tiny_vae)([np.zeros((15, 16, 3), np.uint8)])


def test_a_broken_vae_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be opened"):
        open_round_trip(tmp_path)
