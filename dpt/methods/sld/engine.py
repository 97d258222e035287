"""Makes all edits of a round: compose in pixels, follow the composition's noise trajectory, denoise, paste back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt.backbone import Backbone
from dpt.backbone.rng import generator_for
from dpt.claims.facts import Noun
from dpt.claims.layout import Edit, to_pixels
from dpt.data.images import from_pil, to_pil
from dpt.detect.base import Image
from dpt.detect.masks import Mask, Segmenter, ellipse_mask
from dpt.methods.sld.objects import Composition, Sprite, compose, object_prompt
from dpt.methods.sld.settings import EngineSettings
from dpt.sampling.guidance import Denoiser, classifier_free, paste_back, regional, to_cells
from dpt.sampling.loop import FRESH, FollowTrajectory, denoise, inverted_trajectory, noised_trajectory
from dpt.sampling.schedulers import make_scheduler, set_steps

EDIT_NOISE = "edit noise"


class ObjectSource(Protocol):
    """Generates single objects."""

    def make(self, noun: Noun, seed: int) -> Sprite | None:
        """None if no generated image shows the object."""
        ...


@dataclass(frozen=True)
class EditedImage:
    image: Image
    mask: Mask
    """The pixels that were removed, pasted or drawn."""


class EditEngine:
    def __init__(
        self,
        backbone: Backbone,
        segmenter: Segmenter,
        objects: ObjectSource,
        settings: EngineSettings,
        guidance_scale: float,
        on_calls: Callable[[int], None] = lambda calls: None,
    ) -> None:
        """The engine calls `on_calls(n)` whenever the network has computed n batch rows."""
        self.backbone, self.segmenter, self.objects = backbone, segmenter, objects
        self.settings, self.guidance_scale, self.on_calls = settings, guidance_scale, on_calls

    def edit(
        self,
        image: Image,
        edits: Sequence[Edit],
        prompt: str,
        seed: int,
        strength: float | None = None,
        background: str = "",
    ) -> EditedImage:
        """Apply the edits in one pass over the latents. Without edits, the image itself.

        `strength` replaces that of the settings. `background` is the prompt where an object is removed, if that is
        drawn from pure noise.
        """
        strength = self.settings.strength if strength is None else strength
        if not any(edit.kinds for edit in edits):
            return EditedImage(image, np.zeros(image.shape[:2], bool))
        plan = self._plan(image, edits, seed)
        mask = plan.composition.erased | plan.composition.pasted
        for region, _, _ in plan.regions:
            mask |= region
        result = self._denoise(plan, mask, (prompt, background), seed, self.settings.release(strength))
        edited = np.asarray(to_pil(result))
        if not self.settings.paste:
            return EditedImage(edited, mask)
        pasted = np.asarray(to_pil(paste_back(_pixels(image), _pixels(edited), mask, self.backbone.vae_scale_factor)))
        return EditedImage(np.where((plan.kept & ~mask)[..., None], image, pasted), mask)

    def _plan(self, image: Image, edits: Sequence[Edit], seed: int) -> EditPlan:
        """Masks and sprites of every edit, composed in pixels."""
        height, width = image.shape[:2]
        present = [edit.current for edit in edits if edit.current is not None]
        masks = self.segmenter.masks(image, [to_pixels(thing.box, width, height) for thing in present])
        mask_of = {thing.id: mask for thing, mask in zip(present, masks, strict=True)}
        removed: list[Mask] = []
        placed = []
        regions: list[tuple[Mask, str, int]] = []
        for number, edit in enumerate(edits):
            current, goal = edit.current, edit.goal
            if not edit.kinds:
                continue
            if current is not None and (edit.kinds != ("attribute",) or self.settings.attribute == "object"):
                removed.append(mask_of[current.id])
            if goal is None:
                continue
            box = to_pixels(goal.box, width, height)
            if current is not None and "attribute" not in edit.kinds:
                placed.append((Sprite(image, mask_of[current.id], to_pixels(current.box, width, height)), box))
                continue
            mode = self.settings.add if current is None else self.settings.attribute
            sprite = None if mode == "region" else self.objects.make(goal.noun, seed * 101 + number)
            if sprite is not None:
                placed.append((sprite, box))
            elif edit.kinds == ("attribute",) and current is not None:
                release = self.settings.release(self.settings.attribute_strength)
                regions.append((mask_of[current.id], object_prompt(goal.noun), release))
            else:
                regions.append((ellipse_mask(box, height, width), object_prompt(goal.noun), FRESH))
        kept = [mask_of[edit.current.id] for edit in edits if edit.current is not None and not edit.kinds]
        composition = compose(image, removed, placed, self.settings.margin, kept)
        return EditPlan(composition, regions, np.any(kept, axis=0) if kept else np.zeros((height, width), bool))

    @torch.no_grad()
    def _denoise(self, plan: EditPlan, mask: Mask, prompts: tuple[str, str], seed: int, free_from: int) -> Tensor:
        """Denoise the composed image where it was edited; returns (3,H,W)."""
        backbone, settings = self.backbone, self.settings
        factor = backbone.vae_scale_factor
        composed = plan.composition
        height, width = mask.shape
        z = backbone.encode_images(_padded(_pixels(composed.image), factor)[None].to(backbone.device))
        scheduler = make_scheduler("ddim", backbone.scheduler_config)
        set_steps(scheduler, settings.num_timesteps, z.device, (z.shape[-2], z.shape[-1]))
        eps = torch.randn(z.shape, generator=generator_for(seed, 0, EDIT_NOISE)).to(z.device)
        if settings.trajectory == "ddim":
            condition = backbone.encode_text([""])
            one = lambda: self.on_calls(1)  # noqa: E731
            trajectory = inverted_trajectory(backbone, z, condition, scheduler.timesteps, one)
        else:
            trajectory = noised_trajectory(backbone.noise, z, eps, scheduler.timesteps)
        free = to_cells(mask, factor, settings.context)
        last = settings.num_timesteps if settings.keep else free_from
        release = torch.where(free > 0, free_from, last)
        regions: list[tuple[Tensor, Denoiser]] = []
        if settings.fill == "noise" and composed.erased.any():
            cells = to_cells(composed.erased, factor)
            release = torch.where(cells > 0, FRESH, release)
            regions.append((cells.to(z.device), self._denoiser(prompts[1])))
        for region, text, step in plan.regions:
            cells = to_cells(region, factor)
            release = torch.where(cells > 0, step, release)
            regions.append((cells.to(z.device), self._denoiser(text)))
        hook = FollowTrajectory(trajectory, release.to(z.device))
        denoiser = regional(self._denoiser(prompts[0]), regions)
        fresh = torch.randn(z.shape, generator=generator_for(seed, 1, EDIT_NOISE)).to(z.device)
        latents = denoise(
            denoiser, scheduler, hook.initial(fresh), settings.num_timesteps, hooks=(hook,), start=hook.start
        )
        return backbone.decode_latents(latents)[0, :, :height, :width].cpu()

    def _denoiser(self, prompt: str, negative: str = "") -> Denoiser:
        text, uncond = self.backbone.encode_text([prompt]), self.backbone.encode_text([negative])
        denoiser = classifier_free(self.backbone.predict, text, uncond, self.guidance_scale)
        rows = 1 if self.guidance_scale == 1 else 2

        def counted(x: Tensor, t: Tensor) -> Tensor:
            self.on_calls(rows)
            return denoiser(x, t)

        return counted


@dataclass(frozen=True)
class EditPlan:
    composition: Composition
    regions: list[tuple[Mask, str, int]]
    """Mask, prompt and release step of what is drawn in place."""
    kept: Mask
    """The pixels of objects that no edit concerns."""


def _padded(image: Tensor, factor: int) -> Tensor:
    """(3,H,W) with repeated edges, up to whole cells."""
    height, width = image.shape[-2:]
    return F.pad(image[None], (0, -width % factor, 0, -height % factor), mode="replicate")[0]


def _pixels(image: Image) -> Tensor:
    from PIL import Image as PILImage

    return from_pil(PILImage.fromarray(image))
