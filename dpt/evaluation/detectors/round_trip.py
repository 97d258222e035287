"""Pictures through a VAE and back: what the detector sees of a latent diffusion model at its very best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dpt.errors import fail
from dpt.evaluation.detectors.base import Image

RoundTrip = Callable[[Sequence[Image]], list[Image]]


def open_round_trip(folder: Path, batch: int = 32) -> RoundTrip:
    """From a diffusers model folder (with a `vae` subfolder) or a folder that is itself a VAE."""
    home = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (home / "config.json").is_file():
        fail(f"{folder} holds no VAE: there is no {home / 'config.json'}")

    import torch
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(home, local_files_only=True).float().eval()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        fail(f"the VAE in {home} cannot be opened: {reason[0] if reason else type(error).__name__}")
    unit = 2 ** (len(vae.config["block_out_channels"]) - 1)

    @torch.inference_mode()
    def round_trip(images: Sequence[Image]) -> list[Image]:
        decoded: list[Image] = []
        for start in range(0, len(images), batch):
            pixels = np.stack(images[start : start + batch])
            if pixels.shape[1] % unit or pixels.shape[2] % unit:
                fail(f"the VAE in {home} takes sides that {unit} divides, not {pixels.shape[1:3]}")
            values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            back = vae.decode(vae.encode(values).latent_dist.mode()).sample
            levels = ((back + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            decoded.extend(levels.permute(0, 2, 3, 1).numpy())
        return decoded

    return round_trip
