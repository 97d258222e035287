"""Functions around the sampling loop: hooks around each step, ways to turn a network into a denoiser, regional prompts.

`predict(x, t, condition)` is the network; `denoiser(x, t) -> prediction` is what the sampling loop calls. A
guidance is a function that returns a denoiser, built from `predict` or around another denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dpt.backbone import Backbone, Condition, NoiseSchedule
from dpt.backbone.base import Grid, ImageSizes
from dpt.errors import UserError
from dpt.sampling.options import ALWAYS, OWN_SIZE, Guidance, SizeConditions
from dpt.score.matching import Scorer


@dataclass(frozen=True)
class StepInfo:
    """One call of the denoiser within the sampling loop."""

    index: int
    count: int
    t: Tensor
    scale: Tensor
    """(1,): the denoiser's input is the latents times this."""
    continues: bool
    """Whether the scheduler continues from the latents it is given now, not from ones it stored."""

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


class StepHook:
    """Called before and after each call of the denoiser, and may change the latents. This one changes nothing."""

    @property
    def stops(self) -> bool:
        """Whether sampling ends after this step."""
        return False

    def before(self, z: Tensor, step: StepInfo) -> Tensor:
        return z

    def after(self, z: Tensor, step: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        """z: the scheduler's next latents; x: the denoiser's input; prediction: its output."""
        return z


@dataclass(frozen=True)
class TraceStep:
    index: int
    t: float
    scores: Tensor | None  # (B,), of the UNet's input at this call, after any correction of the latents
    x0_pred: Tensor | None  # (B,C,h,w), only at the steps chosen


class Trace(StepHook):
    """Records the matching score at each call, and the predicted x0 at some."""

    def __init__(
        self, backbone: Backbone, text: Condition, scorer: Scorer | None, x0_pred_at: Collection[int] = ()
    ) -> None:
        self.backbone, self.text, self.scorer, self.x0_pred_at = backbone, text, scorer, frozenset(x0_pred_at)
        self.steps: list[TraceStep] = []

    @property
    def scores(self) -> list[list[float]]:
        """One row per call, one score per image."""
        return [step.scores.tolist() for step in self.steps if step.scores is not None]

    def after(self, z: Tensor, step: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        scores = None if self.scorer is None else self.scorer.score(x, step.t, self.text).cpu()
        shown = step.index in self.x0_pred_at
        x0_pred = self.backbone.noise.x0(x, prediction, step.t).cpu() if shown else None
        self.steps.append(TraceStep(step.index, float(step.t), scores, x0_pred))
        return z


Predict: TypeAlias = Callable[[Tensor, Tensor, Condition], Tensor]

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]

When: TypeAlias = Callable[[Tensor], bool]


def conditional(predict: Predict, condition: Condition) -> Denoiser:
    """The network's own prediction for these prompts, unguided."""
    return lambda x, t: predict(x, t, condition)


def classifier_free(
    predict: Predict,
    condition: Condition,
    negative: Condition,
    scale: float,
    *,
    rescale: float = 0.0,
    when: When = lambda t: True,
    predict_negative: Predict | None = None,
) -> Denoiser:
    """Classifier-free guidance at the timesteps where `when` holds, `conditional` elsewhere.

    scale = 1 is the prompt alone and costs one forward pass instead of two; 0 is the negative prompt alone.
    `predict_negative` is another network for the negative half, such as one tuned on what to avoid.
    """
    plain = conditional(predict, condition)
    if scale == 1:
        return plain
    both = Condition.stack([negative, condition])

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        if not when(t):
            return plain(x, t)
        if predict_negative is not None:
            return combine(predict_negative(x, t, negative), predict(x, t, condition), scale, rescale)
        uncond, cond = predict(torch.cat([x, x]), t, both).chunk(2)
        return combine(uncond, cond, scale, rescale)

    return denoiser


def embed_guidance(
    backbone: Backbone, text: Condition, negative: Condition, guidance: Guidance
) -> tuple[Condition, Condition, Guidance]:
    """For a model that takes the guidance scale as an input: conditions that hold it, and true guidance beside it."""
    if not backbone.guidance_is_embedded:
        return text, negative, guidance
    text, negative = (
        replace(condition, guidance=torch.full((len(condition),), guidance.scale)) for condition in (text, negative)
    )
    return text, negative, replace(guidance, scale=guidance.true_cfg_scale)


def unused_guidance(backbone: Backbone, guidance: Guidance, negative_prompts: Iterable[str]) -> list[str]:
    """A sentence for each part of the guidance that has no effect on this model."""
    if not backbone.guidance_is_embedded:
        unused = "the true CFG scale has no effect: this model is guided by its guidance scale"
        return [unused] if guidance.true_cfg_scale != 1 else []
    if guidance.true_cfg_scale == 1 and any(negative_prompts):
        return [
            "the negative prompt has no effect: this model is distilled and takes the guidance scale as an input; a "
            "true CFG scale above 1 turns classifier-free guidance on, at twice the time"
        ]
    return []


def with_sizes(backbone: Backbone, condition: Condition, sizes: SizeConditions, latent_size: Grid) -> Condition:
    """The prompts with these size conditions, for images from latents of this size; unchanged without any."""
    if sizes == OWN_SIZE or not backbone.takes_sizes:
        return condition
    height, width = (side * backbone.vae_scale_factor for side in latent_size)
    own = height, width
    return condition.with_sizes(
        ImageSizes(sizes.original_size or own, sizes.target_size or own, sizes.crops_coords_top_left)
    )


def unused_sizes(backbone: Backbone, sizes: SizeConditions) -> list[str]:
    """A sentence if size conditions have no effect on this model."""
    if sizes == OWN_SIZE or backbone.takes_sizes:
        return []
    return ["the size conditions have no effect: only Stable Diffusion XL is conditioned on sizes"]


def combine(uncond: Tensor, cond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """e_uncond + scale (e_cond - e_uncond); a fraction `rescale` of it gets the standard deviation of e_cond."""
    guided = uncond + scale * (cond - uncond)
    if rescale == 0:
        return guided
    std_cond, std_guided = (e.std(dim=(1, 2, 3), keepdim=True) for e in (cond, guided))
    return rescale * (guided * (std_cond / std_guided)) + (1 - rescale) * guided


def guides_at(guidance: Guidance, noise: NoiseSchedule) -> When:
    """Whether a step at timestep t is guided."""
    if guidance.interval == ALWAYS:
        return lambda t: guidance.scale != 1  # without looking at t, which may have to come from a GPU
    return lambda t: guidance.scale != 1 and guidance.interval.contains(noise.level(float(t)))


LARGEST_PREDICTION = 1e3
"""Networks predict values of about 1; guidance multiplies them by its scale."""


def check_finite(latents: Tensor, step: StepInfo, explain: Callable[[], str]) -> None:
    """Raise with a reason if any value is NaN or infinite."""
    if not bool(latents.isfinite().all()):
        raise UserError(f"the latents are no longer finite after step {step.index + 1} of {step.count}: {explain()}")


def is_plausible(prediction: Tensor) -> bool:
    """Whether a prediction from noise is finite and of a size that sampling can use."""
    return bool((prediction.abs() < LARGEST_PREDICTION).all())


@torch.no_grad()
def explain_denoiser(backbone: Backbone, text: Condition, x: Tensor, t: Tensor, guidance: Guidance) -> str:
    """Why guided predictions from noise are not usable: the guidance scale, or the model."""
    if guidance.scale != 1 and bool(backbone.predict(x, t, text).isfinite().all()):
        return f"the guidance scale {guidance.scale:g} is too large"
    return f"the model's own predictions are not finite: its weights, its LoRA or its number format ({backbone.dtype})"


Mask = NDArray[np.bool_]
"""(height, width), in pixels."""


def regional(denoiser: Denoiser, regions: Sequence[tuple[Tensor, Denoiser]]) -> Denoiser:
    """The denoiser, replaced by others inside their masks (1,1,h,w); where masks overlap the last one counts.

    Raw network outputs are mixed. That is valid for every prediction type: at one t, outputs and x0 are related by the
    same linear map in each cell.
    """
    if not regions:
        return denoiser

    def mixed(x: Tensor, t: Tensor) -> Tensor:
        output = denoiser(x, t)
        for mask, other in regions:
            output = torch.where(mask > 0, other(x, t), output)
        return output

    return mixed


def to_cells(mask: Mask, factor: int, dilate: int = 0) -> Tensor:
    """(1,1,h,w): the latent cells with any pixel of the mask, dilated by whole cells.

    Any covered pixel counts, since a small object must not vanish between sampled pixels.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    cells = F.max_pool2d(pixels, factor, ceil_mode=True)
    if dilate:
        cells = F.max_pool2d(cells, 2 * dilate + 1, stride=1, padding=dilate)
    return cells


def paste_back(source: Tensor, edited: Tensor, mask: Mask, feather: int) -> Tensor:
    """The edited image (3,H,W) inside the mask, the source from `feather` pixels away on, a ramp between."""
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    weight = torch.from_numpy(np.clip(1 - distance / max(feather, 1), 0, 1)).float()
    blended = weight * edited + (1 - weight) * source
    return torch.where(weight > 0, blended, source)
