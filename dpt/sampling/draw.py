"""Pictures for a list of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from dpt.adapter import Adapter
from dpt.backbone import Backbone, Condition
from dpt.backbone.rng import generator_for
from dpt.errors import UserError
from dpt.sampling.hooks import StepHook
from dpt.sampling.loop import denoise
from dpt.sampling.options import ALWAYS, MAX_SIDE, NO_CORRECTION, Correction, Guidance, Interval
from dpt.sampling.schedulers import check_name, make_scheduler, set_steps
from dpt.sampling.self_correction import check_correction, guided
from dpt.score.matching import CLEAN_AT, Scorer

INITIAL_NOISE = "initial noise"

STEP_NOISE = "step noise"


@dataclass(frozen=True)
class Request:
    """Picture number `index` of a prompt under a seed."""

    prompt: str
    seed: int
    index: int
    negative_prompt: str = ""


@dataclass(frozen=True)
class Settings:
    """How to draw. A height or width of None is the size the model was trained at."""

    steps: int = 25
    guidance_scale: float = 7.5
    scheduler: str = "ddim"
    height: int | None = None
    width: int | None = None
    guidance_interval: Interval = ALWAYS
    guidance_rescale: float = 0.0
    correction: Correction = NO_CORRECTION

    def __post_init__(self) -> None:
        check_name(self.scheduler)
        if self.steps < 1:
            raise UserError(f"the number of steps must be at least 1, not {self.steps}")
        _ = self.guidance
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and not 1 <= side <= MAX_SIDE:
                raise UserError(f"the {name} must be between 1 and {MAX_SIDE}, not {side}")

    @property
    def guidance(self) -> Guidance:
        return Guidance(self.guidance_scale, self.guidance_interval, self.guidance_rescale)


@dataclass(frozen=True)
class SampledBatch:
    """Pictures that were drawn together, not decoded yet."""

    requests: Sequence[Request]
    text: Condition
    latents: Tensor  # (B,C,h,w)

    def decode(self, backbone: Backbone) -> Tensor:
        """Images (B,3,H,W) on the CPU."""
        with torch.no_grad():
            return backbone.decode_latents(self.latents).cpu()


Watch = Callable[[Sequence[Request], Condition], StepHook]
"""What watches a batch of requests being drawn."""


def draw(
    backbone: Backbone,
    requests: Sequence[Request],
    settings: Settings,
    *,
    adapter: Adapter | None = None,
    batch_size: int = 4,
    exact: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Images (3,H,W) on the CPU, in [-1,1] but for overshoot, in the order of the requests.

    A picture is a function of (model, request, settings). On a CPU this holds to the bit when `exact`:
    pictures are then made one at a time, because matrix products and convolutions round differently for one
    sample than for several (about 1e-6 a call in the UNet, 1e-5 in the VAE); on one core that costs about a
    fifth of the speed of large batches. With `exact` off, and on a GPU, it holds up to that rounding.

    `on_step(n)` is called when n pictures have advanced by one call of the denoiser. A correction reads `adapter`.
    """
    batches = draw_latents(
        backbone, requests, settings, adapter=adapter, batch_size=batch_size, exact=exact, on_step=on_step
    )
    return (image for drawn in batches for image in drawn.decode(backbone))


def draw_latents(
    backbone: Backbone,
    requests: Sequence[Request],
    settings: Settings,
    *,
    adapter: Adapter | None = None,
    batch_size: int = 4,
    exact: bool = True,
    on_step: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> Iterator[SampledBatch]:
    """As `draw`, a batch at a time and without decoding."""
    latent_size = backbone.latent_size(settings.height, settings.width)
    calls_per_picture(backbone, settings)
    if settings.correction.on and adapter is None:
        raise UserError("a correction needs an adapter, and there is none")
    scorer = Scorer(backbone, adapter) if settings.correction.on and adapter is not None else None
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}")
    if exact and backbone.device.type == "cpu":
        batch_size = 1
    return _draw_batches(backbone, requests, settings, latent_size, scorer, batch_size, on_step, watch)


def calls_per_picture(backbone: Backbone, settings: Settings) -> int:
    """How many calls of the denoiser one picture takes."""
    available = backbone.noise.num_timesteps
    if settings.steps > available:
        raise UserError(f"the model has {available} noise levels, too few for {settings.steps} steps")
    scheduler = make_scheduler(settings.scheduler, backbone.scheduler_config)
    check_correction(settings.correction, scheduler)
    return set_steps(scheduler, settings.steps)


def intervals_without_a_step(backbone: Backbone, settings: Settings) -> list[str]:
    """A sentence for guidance and for a correction that were asked for where none of the steps is."""
    scheduler = make_scheduler(settings.scheduler, backbone.scheduler_config)
    set_steps(scheduler, settings.steps)
    steps = [backbone.noise.level(float(t)) for t in scheduler.timesteps]
    guidance, correction = settings.guidance, settings.correction
    found = []
    if guidance.scale != 1 and not any(guidance.interval.contains(level) for level in steps):
        found.append(f"nothing is guided: no step is in {guidance.interval} of the way")
    movable = steps[:-1] if correction.target == "fused" else steps  # which moves the state after a step
    if correction.on and not any(correction.interval.contains(level) for level in movable):
        found.append(f"nothing is corrected: no step that {correction.target} could move is in {correction.interval} "
                     "of the way")  # fmt: skip
    return found


def _draw_batches(
    backbone: Backbone,
    requests: Sequence[Request],
    settings: Settings,
    latent_size: tuple[int, int],
    scorer: Scorer | None,
    batch_size: int,
    on_step: Callable[[int], None] | None,
    watch: Watch | None,
) -> Iterator[SampledBatch]:
    # One prompt at a time, so that a prompt's states do not depend on its neighbours either.
    encode = lru_cache(maxsize=64)(lambda prompt: backbone.encode_text([prompt]))
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        text = Condition.stack([encode(one.prompt) for one in batch])
        negative = Condition.stack([encode(one.negative_prompt) for one in batch])
        denoiser, around = guided(backbone, text, negative, settings.guidance, settings.correction, scorer)
        latents = denoise(
            denoiser,
            make_scheduler(settings.scheduler, backbone.scheduler_config),
            initial_noise(backbone, batch, latent_size),
            settings.steps,
            generators=[generator_for(one.seed, one.index, STEP_NOISE) for one in batch],
            on_step=None if on_step is None else partial(on_step, len(batch)),
            around=around if watch is None else (*around, watch(batch, text)),
        )
        yield SampledBatch(batch, text, latents)


def initial_noise(backbone: Backbone, requests: Sequence[Request], latent_size: tuple[int, int]) -> Tensor:
    """Standard normal noise (B,C,h,w), a row per request, made on the CPU."""
    shape = (backbone.latent_channels, *latent_size)
    rows = [torch.randn(shape, generator=generator_for(one.seed, one.index, INITIAL_NOISE)) for one in requests]
    return torch.stack(rows).to(backbone.device)


@dataclass(frozen=True)
class Candidate:
    request: Request
    latents: Tensor  # (1,C,h,w)
    score: float

    def decode(self, backbone: Backbone) -> Tensor:
        """(3,H,W) on the CPU, drawn alone or not: the same."""
        return backbone.decode_latents(self.latents)[0].detach().cpu()


def scored(batches: Iterable[SampledBatch], scorer: Scorer, at: Sequence[float] = CLEAN_AT) -> Iterator[Candidate]:
    """Each picture with its score; all of a batch are scored together."""
    for drawn in batches:
        scores = scorer.clean_score(drawn.latents, drawn.text, at).tolist()
        for row, (request, score) in enumerate(zip(drawn.requests, scores, strict=True)):
            yield Candidate(request, drawn.latents[row : row + 1], score)


def best(candidates: Iterable[Candidate], keep: int) -> list[Candidate]:
    """The `keep` of highest score, highest first; of equals, the one that was asked for first."""
    return sorted(candidates, key=lambda one: -one.score)[:keep]
