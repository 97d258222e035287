"""How predictions are steered, as plain values. Importing this file is cheap."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dpt.errors import UserError
from dpt.generation_defaults import GenerationDefaults, RecommendedCorrection


@dataclass(frozen=True)
class SamplerConfig:
    """Steps, guidance scale and scheduler."""

    num_timesteps: int = 25
    """Denoising steps. The embedded model is evaluated with 25; the published script uses 50."""
    guidance_scale: float | None = None
    """Strength of classifier-free guidance; 1 turns it off and is twice as fast. Default: what the checkpoint's or the
    model's generation_defaults.json says, else 7.5."""
    scheduler: str = "ddim"
    """One of own, ddim, ddpm, dpm++, dpm++_sde, euler, euler_a, heun, lms, pndm, unipc; own is the one in the
    model's folder."""

    def with_defaults(self, defaults: GenerationDefaults) -> SamplerConfig:
        """With a guidance scale in any case."""
        return self if self.guidance_scale is not None else replace(self, guidance_scale=defaults.guidance_scale)


TARGETS = ("state", "input", "fused")

NORMS = ("none", "unit", "rms", "relative")


ROUNDING = 1e-9
"""Far below the distance of two timesteps: 1 - 0.7 counts as 0.3."""


@dataclass(frozen=True)
class Interval:
    """The steps from `start` to before `end`, as fractions of the way from pure noise (0) to the image (1).

    Where steps are evenly spread, as DDIM's are, these are shares of the steps too.
    """

    start: float = 0.0
    end: float = 1.0

    def check(self, what: str) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise UserError(f"{what} is on from a start to an end with 0 <= start < end <= 1, not {self}")

    def contains(self, level: float) -> bool:
        """Whether a step at this noise level (`NoiseSchedule.level`) lies in it."""
        progress = 1 - level
        return self.start - ROUNDING <= progress < self.end - ROUNDING

    def __str__(self) -> str:
        return f"{self.start:g} to {self.end:g}"


ALWAYS = Interval()


@dataclass(frozen=True)
class SizeConditions:
    """What SDXL is conditioned on beside the prompt, in pixels, as height and width. Default: the image's own size."""

    original_size: tuple[int, int] | None = None
    """The size that the image seems to have been scaled from: a small one makes it blurry."""
    crops_coords_top_left: tuple[int, int] = (0, 0)
    """Where the image seems to have been cropped: top and left; 0 0 centres its object."""
    target_size: tuple[int, int] | None = None
    """The size that the image seems to have been scaled to."""

    def __post_init__(self) -> None:
        given = {"original_size": self.original_size, "target_size": self.target_size}
        for name, size in given.items():
            if size is not None and not all(1 <= side <= LARGEST_SIDE for side in size):
                raise UserError(f"the {name} must be two sides from 1 to {LARGEST_SIDE}, not {size[0]} {size[1]}")
        if not all(0 <= side <= LARGEST_SIDE for side in self.crops_coords_top_left):
            top, left = self.crops_coords_top_left
            raise UserError(f"the crops_coords_top_left must be from 0 to {LARGEST_SIDE}, not {top} {left}")


LARGEST_SIDE = 65536

OWN_SIZE = SizeConditions()


@dataclass(frozen=True)
class Guidance:
    """e = e_neg + scale (e_text - e_neg): Ho and Salimans 2022, the scale as Stable Diffusion counts it."""

    scale: float = 7.5
    interval: Interval = ALWAYS
    """Outside, the text's own prediction is taken (Kynkäänniemi et al. 2024)."""
    rescale: float = 0.0
    """phi: how much of the spread that guidance adds is taken back (Lin et al. 2023, section 3.4)."""
    true_cfg_scale: float = 1.0
    """For models that take `scale` as an input of the network: the scale of this formula."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise UserError(f"the guidance scale must be a number of at least 0, not {self.scale}")
        if not (math.isfinite(self.true_cfg_scale) and self.true_cfg_scale >= 0):
            raise UserError(f"the true CFG scale must be a number of at least 0, not {self.true_cfg_scale}")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"the guidance rescale is between 0 and 1, not {self.rescale}")
        self.interval.check("guidance")


@dataclass(frozen=True)
class Correction:
    """Steps up the matching score while denoising: eta g, with g = d s(z_t, y) / d z_t (section 4).

    z_t is what the adapter was trained on and what the UNet is given. A scheduler that keeps its state on another
    scale has it moved by so much that the UNet's input moves by eta g: eta means the same for all of them.
    """

    factor: float = 0.0
    """eta. 0 is no correction."""
    target: str = "state"
    """What is moved. state: z_t, before it is denoised, as the paper has it. input: what the conditional branch sees
    of z_t, as the published code has it. fused: the next state, by a gradient from the forward pass that guidance
    takes anyway."""
    norm: str = "none"
    """none: eta g. unit: eta g / |g|. rms: eta sqrt(d) g / |g| for d values, which is eta g / |g| as often as noise is
    long: a length that means the same at any size. relative: eta |e| g / |g|, e being the noise predicted for the text,
    which is nearly the same; but for fused, that takes the rest of a forward pass. Norms are each image's own."""
    interval: Interval = ALWAYS
    every: int = 1
    """Only every so many steps of the interval, from its first."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor):
            raise UserError(f"the correction factor must be a number, not {self.factor}")
        if self.target not in TARGETS:
            raise UserError(f"the correction target is one of {', '.join(TARGETS)}, not {self.target!r}")
        if self.norm not in NORMS:
            raise UserError(f"the correction norm is one of {', '.join(NORMS)}, not {self.norm!r}")
        if self.every < 1:
            raise UserError(f"a correction is made every step or every few, not every {self.every}")
        self.interval.check("a correction")

    @property
    def on(self) -> bool:
        return self.factor != 0


NO_CORRECTION = Correction()


PUBLISHED_TARGET = "input"
"""What a factor alone moves: as in the published code, which leaves the state itself uncorrected."""


def recommended_correction(recommended: RecommendedCorrection | None, steps: int) -> Correction:
    """The correction a checkpoint recommends, spread over this many steps."""
    if recommended is None:
        return NO_CORRECTION
    interval = Interval(recommended.start, recommended.end)
    factor = recommended.strength / max(steps, 1)
    return Correction(factor, recommended.target, recommended.norm, interval, recommended.every)


def resolve_correction(
    recommended: Correction,
    factor: float | None = None,
    target: str | None = None,
    norm: str | None = None,
    start: float | None = None,
    end: float | None = None,
    every: int | None = None,
) -> Correction:
    """The recommended correction with the given values in place of its own.

    With a factor nothing of the recommended one is used: a factor alone means what it means in the published code.
    """
    base = recommended if factor is None else Correction(factor, PUBLISHED_TARGET)
    interval = Interval(base.interval.start if start is None else start, base.interval.end if end is None else end)
    return Correction(
        base.factor,
        base.target if target is None else target,
        base.norm if norm is None else norm,
        interval,
        base.every if every is None else every,
    )
