"""A model in closed form: the ideal denoiser of images whose cells have one of a few colours.

The prompt sets how likely each colour is, so it inverts, fills holes with background, and paints what a prompt names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn import functional as F

from dpt.backbone import Condition
from dpt.backbone.noise import DDPMSchedule
from dpt.claims.facts import Box
from dpt.claims.judge import Detection, Detections

PALETTE = {"white": (250, 250, 250), "red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 220),
           "yellow": (250, 220, 30), "cyan": (30, 210, 220)}  # fmt: skip

CELL = 8

NAMED, UNNAMED = 8.0, 1e-3
"""How likely colours are beside the background, if the prompt names them and if not."""


class PaletteBackbone:
    """The parts of the Backbone protocol that editing uses."""

    vae_scale_factor, latent_channels, device = CELL, 4, torch.device("cpu")

    def __init__(self, prediction_type: str = "epsilon", timestep_spacing: str = "leading") -> None:
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1 if timestep_spacing == "leading" else 0,
            prediction_type=prediction_type,
            timestep_spacing=timestep_spacing,
        )
        self.scheduler_config: dict[str, Any] = dict(scheduler.config)
        self.noise = DDPMSchedule(self.scheduler_config)
        self.to_latent = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [3, 3, 3]])
        self.colours = self._latents(torch.tensor(list(PALETTE.values())).float() / 127.5 - 1)
        self.calls = 0

    def _latents(self, pixels: Tensor) -> Tensor:
        return pixels @ self.to_latent.T

    def encode_text(self, prompts: Sequence[str]) -> Condition:
        weights = [
            [1.0 if name == "white" else NAMED if name in prompt.split() else UNNAMED for name in PALETTE]
            for prompt in prompts
        ]
        states = torch.tensor(weights)
        return Condition(states[:, None], states)

    def encode_images(self, images: Tensor, generator: object = None) -> Tensor:
        cells = F.avg_pool2d(images, CELL).permute(0, 2, 3, 1)
        return self._latents(cells).permute(0, 3, 1, 2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        pixels = latents[:, :3] / 9
        return pixels.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)

    def latent_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        return (height or 256) // CELL, (width or 256) // CELL

    def predict(self, x: Tensor, t: Tensor | int, condition: Condition) -> Tensor:
        self.calls += len(x)
        abar = self.noise.alphas_cumprod[torch.as_tensor(t).reshape(-1)[0]]
        centres = abar.sqrt() * self.colours
        distance = ((x[:, None] - centres[None, :, :, None, None]) ** 2).sum(2)
        near = F.avg_pool2d(F.pad(distance, (1, 1, 1, 1), mode="replicate"), 3, 1)
        prior = condition.states[:, 0].log()[..., None, None]
        p = (prior - near / (2 * (1 - abar))).softmax(1)
        x0 = torch.einsum("bkhw,kc->bchw", p, self.colours)
        eps = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        return eps if self.noise.prediction_type == "epsilon" else abar.sqrt() * eps - (1 - abar).sqrt() * x0


class PaletteDetector:
    """Connected cells of one colour, exactly; every object is a square.

    A patch without 3 x 3 cells is the rim of an object, where two colours mix.
    """

    identity, classes = "palette", ("square",)

    def detect(self, images: Sequence[np.ndarray], queries: object = None) -> list[Detections]:
        from scipy import ndimage

        results = []
        for image in images:
            cells = image[CELL // 2 :: CELL, CELL // 2 :: CELL].astype(int)
            values = np.array(list(PALETTE.values()))
            nearest = np.abs(cells[..., None, :] - values).sum(-1).argmin(-1)
            objects = []
            for number, name in enumerate(PALETTE):
                labels, _ = ndimage.label(nearest == number)
                solid = np.unique(labels[ndimage.binary_erosion(labels > 0, np.ones((3, 3)))])
                places = enumerate(ndimage.find_objects(labels), start=1) if name != "white" else ()
                for rows, columns in [place for label, place in places if label in solid]:
                    box = Box(*(CELL * float(v) for v in (columns.start, rows.start, columns.stop, rows.stop)))
                    objects.append(Detection("square", box, 1.0, name))
            results.append(Detections(tuple(objects)))
        return results


@dataclass(frozen=True)
class PaletteMasks:
    """The pixels whose colour is not the background's, inside the box."""

    identity: str = "palette masks"

    def masks(self, image: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
        coloured = np.abs(image.astype(int) - PALETTE["white"]).sum(-1) > 40
        masks = []
        for box in boxes:
            inside = np.zeros_like(coloured)
            inside[int(box.y0) : int(np.ceil(box.y1)), int(box.x0) : int(np.ceil(box.x1))] = True
            masks.append(inside & coloured)
        return masks


def scene(objects: Sequence[tuple[str, tuple[int, int, int, int]]], side: int = 32) -> np.ndarray:
    """An image of side x side cells with squares at (x, y, width, height) in cells."""
    image = np.empty((side * CELL, side * CELL, 3), np.uint8)
    image[:] = PALETTE["white"]
    for colour, (x, y, width, height) in objects:
        image[y * CELL : (y + height) * CELL, x * CELL : (x + width) * CELL] = PALETTE[colour]
    return image
