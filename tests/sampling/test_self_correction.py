"""Self-correction against steps computed by hand, on tiny models of both prediction types."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpt.adapter import Adapter
from dpt.backbone import Backbone, Condition, open_backbone
from dpt.backbone.diffusers_model import count_passes
from dpt.errors import UserError
from dpt.sampling.draw import Request, SamplingSettings, draw
from dpt.sampling.guidance import Denoiser, StepHook, StepInfo
from dpt.sampling.loop import denoise
from dpt.sampling.options import NORMS, TARGETS, Correction, Guidance, Interval
from dpt.sampling.schedulers import SCHEDULERS, make_scheduler
from dpt.sampling.self_correction import guided
from dpt.score.matching import Scorer
from tests import tiny_models
from tests.checkpoints.making import tiny_adapter
from tests.sampling import by_hand
from tests.tiny_models import POCKET, PROMPT, SD1, TinyModel

SCALE = 3.0
FIRST, SECOND = 501, 1  # DDIM's timesteps for two steps, leading spacing with offset 1


@dataclass
class World:
    backbone: Backbone
    adapter: Adapter
    text: Condition
    negative: Condition
    noise: Tensor

    def parts(self, correction: Correction, scale: float = SCALE) -> tuple[Denoiser, tuple[StepHook, ...]]:
        scorer = Scorer(self.backbone, self.adapter)
        return guided(self.backbone, self.text, self.negative, Guidance(scale), correction, scorer)

    def run(self, correction: Correction, scheduler: str = "ddim", steps: int = 2, scale: float = SCALE) -> Tensor:
        denoiser, hooks = self.parts(correction, scale)
        return denoise(denoiser, self.scheduler(scheduler), self.noise, steps, hooks=hooks)

    def scheduler(self, name: str) -> object:
        return make_scheduler(name, {**self.backbone.scheduler_config, "set_alpha_to_one": False})

    def gradient(self, z: Tensor, t: int) -> Tensor:
        return by_hand.score_gradient(self.backbone, self.adapter, z, torch.tensor(t), self.text)[1]

    def guided(self, z: Tensor, t: int) -> Tensor:
        return by_hand.guided(self.backbone, z, torch.tensor(t), self.text, self.negative, SCALE)

    def ddim(self, z: Tensor, predicted: Tensor, t: int, before: int) -> Tensor:
        return by_hand.ddim(self.backbone, z, predicted, t, before)


def made(model: TinyModel, folder: Path) -> World:
    backbone = open_backbone(tiny_models.save(model, folder), device="cpu")
    noise = torch.randn(2, 4, *backbone.default_latent_size, generator=torch.Generator().manual_seed(3))
    text = backbone.encode_text([PROMPT, "two green stars"])
    return World(backbone, tiny_adapter(backbone), text, backbone.encode_text(["blue", ""]), noise)


@pytest.fixture(scope="module", params=[SD1, POCKET], ids=lambda model: model.name)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return made(request.param, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> World:
    return made(replace(POCKET, latent_size=8), tmp_path_factory.mktemp("pocket") / "model")


def unit(g: Tensor) -> Tensor:
    return g / g.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def length(g: Tensor) -> Tensor:
    return g.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def test_correction_changes_the_latents(world: World) -> None:
    """Otherwise the comparisons below would be meaningless."""
    moved = 20 * world.gradient(world.noise, FIRST)
    assert 0.01 < moved.std() < 10
    assert (world.run(Correction(20)) - world.run(Correction())).abs().max() > 1e-3


def test_target_state_follows_the_papers_formula(world: World) -> None:
    """z <- z + eta g before the step."""
    z = world.noise
    for t, before in ((FIRST, SECOND), (SECOND, -1)):
        z = z + 20 * world.gradient(z, t)
        z = world.ddim(z, world.guided(z, t), t, before)
    torch.testing.assert_close(world.run(Correction(20)), z, rtol=0, atol=2e-5)


def test_target_input_moves_only_the_input_of_the_conditional_branch(world: World) -> None:
    """e = e_neg(z) + w (e_text(z + eta g) - e_neg(z)), and the step continues from z: section 4.2."""
    z = world.noise
    for t, before in ((FIRST, SECOND), (SECOND, -1)):
        at = torch.tensor(t)
        negative = by_hand.prediction(world.backbone, z, at, world.negative)
        positive = by_hand.prediction(world.backbone, z + 20 * world.gradient(z, t), at, world.text)
        z = world.ddim(z, negative + SCALE * (positive - negative), t, before)
    torch.testing.assert_close(world.run(Correction(20, "input")), z, rtol=0, atol=2e-5)


def test_target_fused_moves_the_next_latents_by_this_steps_gradient(world: World) -> None:
    z = world.noise
    g = world.gradient(z, FIRST)
    z = world.ddim(z, world.guided(z, FIRST), FIRST, SECOND) + 20 * g
    z = world.ddim(z, world.guided(z, SECOND), SECOND, -1)  # after which there is no next state
    torch.testing.assert_close(world.run(Correction(20, "fused")), z, rtol=0, atol=2e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_norms_are_per_image(target: str, world: World) -> None:
    z, t = world.noise, torch.tensor(FIRST)
    direction = unit(world.gradient(z, FIRST))
    positive = by_hand.prediction(world.backbone, z, t, world.text)
    a = world.backbone.noise.alphas_cumprod[FIRST]
    v = world.backbone.noise.prediction_type == "v_prediction"
    noise = (1 - a).sqrt() * z + a.sqrt() * positive if v else positive
    expected_shift = {"unit": 4 * direction, "relative": 0.3 * length(noise) * direction,
              "rms": 0.3 * z[0].numel() ** 0.5 * direction}  # fmt: skip
    assert not torch.allclose(length(noise)[0], length(noise)[1], rtol=1e-4)
    for norm, moved in expected_shift.items():
        once = Correction(4 if norm == "unit" else 0.3, target, norm, Interval(0, 0.51))
        if target == "state":
            after = world.ddim(z + moved, world.guided(z + moved, FIRST), FIRST, SECOND)
        elif target == "fused":
            after = world.ddim(z, world.guided(z, FIRST), FIRST, SECOND) + moved
        else:
            negative = by_hand.prediction(world.backbone, z, t, world.negative)
            prediction = by_hand.prediction(world.backbone, z + moved, t, world.text)
            after = world.ddim(z, negative + SCALE * (prediction - negative), FIRST, SECOND)
        expected = world.ddim(after, world.guided(after, SECOND), SECOND, -1)
        torch.testing.assert_close(world.run(once), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_without_guidance_only_the_conditional_prediction_is_used(target: str, world: World) -> None:
    z, g = world.noise, 20 * world.gradient(world.noise, FIRST)

    def step(z: Tensor, seen: Tensor, t: int, before: int) -> Tensor:
        predicted = by_hand.prediction(world.backbone, seen, torch.tensor(t), world.text)
        return world.ddim(z, predicted, t, before)

    once = Correction(20, target, interval=Interval(0, 0.51))
    first = {"state": step(z + g, z + g, FIRST, SECOND), "input": step(z, z + g, FIRST, SECOND)}
    after = first.get(target, step(z, z, FIRST, SECOND) + g)
    expected = step(after, after, SECOND, -1)
    torch.testing.assert_close(world.run(once, scale=1.0), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_factor_is_independent_of_the_scheduler_scale(target: str, world: World) -> None:
    """Euler in the scale of k-diffusion and DDIM are the same steps; its state is moved so that the input moves by
    eta g, or the corrected images would differ."""
    config = {**world.backbone.scheduler_config, "timestep_spacing": "leading", "set_alpha_to_one": True}
    runs = {}
    for name in ("ddim", "euler"):
        for correction in (Correction(), Correction(20, target)):
            denoiser, hooks = world.parts(correction)
            runs[name, correction.on] = denoise(denoiser, make_scheduler(name, config), world.noise, 4, hooks=hooks)
    torch.testing.assert_close(runs["euler", False], runs["ddim", False], rtol=0, atol=1e-3)
    torch.testing.assert_close(runs["euler", True], runs["ddim", True], rtol=0, atol=1e-3)
    assert (runs["ddim", True] - runs["ddim", False]).abs().max() > 1e-2


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_scheduler_can_be_corrected(scheduler: str, target: str, pocket: World) -> None:
    def run(correction: Correction) -> Tensor:
        denoiser, hooks = pocket.parts(correction)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        return denoise(denoiser, pocket.scheduler(scheduler), pocket.noise, 4, generators=generators, hooks=hooks)

    plain, corrected = run(Correction()), run(Correction(3, target, "unit"))
    assert corrected.isfinite().all()
    assert (corrected - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3


class Push(StepHook):
    """Moves the state before the second call."""

    def before(self, z: Tensor, step: StepInfo) -> Tensor:
        return z + 1 if step.index == 1 else z


def blind(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler", "heun", "lms", "pndm", "unipc"])
def test_scheduler_keeps_a_change_by_a_hook(scheduler: str, pocket: World) -> None:
    """Also by schedulers with their own samples. The network ignores its input, so only the state can differ."""
    config = {**pocket.backbone.scheduler_config, "prediction_type": "epsilon"}
    at_rest = denoise(blind, make_scheduler(scheduler, config), pocket.noise, 4)
    pushed = denoise(blind, make_scheduler(scheduler, config), pocket.noise, 4, hooks=[Push()])
    keeps_another = scheduler in ("heun", "pndm")  # whose call 1 goes on from the sample of call 0
    assert ((pushed - at_rest).abs().min() > 0.9) == (not keeps_another)


def test_unipc_does_not_undo_a_change_by_a_hook(pocket: World) -> None:
    config = {**pocket.backbone.scheduler_config, "prediction_type": "epsilon"}
    states = []
    for no_corrector in ([], [0]):
        scheduler = make_scheduler("unipc", {**config, "disable_corrector": no_corrector})
        states.append(denoise(blind, scheduler, pocket.noise, 4, hooks=[Push()]))
    assert torch.equal(*states)


@pytest.mark.parametrize("target", TARGETS)
def test_image_does_not_depend_on_its_batch(target: str, pocket: World) -> None:
    together = pocket.run(Correction(3, target, "relative"))
    for row in range(2):
        alone = World(
            pocket.backbone, pocket.adapter, pocket.text[[row]], pocket.negative[[row]], pocket.noise[row : row + 1]
        ).run(Correction(3, target, "relative"))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-4)
    requests = [Request(PROMPT, 1, 0), Request("two stars", 2, 1, "blue")]
    settings = SamplingSettings(2, correction=Correction(3, target, "unit"))
    many = list(draw(pocket.backbone, requests, settings, adapter=pocket.adapter))
    for request, picture in zip(requests, many, strict=True):
        (single,) = draw(pocket.backbone, [request], settings, adapter=pocket.adapter, batch_size=1)
        assert torch.equal(single, picture)


class Rows:
    """Counts the rows that enter the UNet, that reach its end, and that the adapter reads."""

    def __init__(self, world: World) -> None:
        unet = world.backbone.unet
        self.rows = {"begun": 0, "ended": 0, "read": 0}
        counted = {"begun": unet.conv_in, "ended": unet.conv_out, "read": world.adapter.input_proj}
        self.hooks = [part.register_forward_hook(partial(self.count, name)) for name, part in counted.items()]

    def count(self, name: str, module: object, given: object, out: Tensor) -> None:
        self.rows[name] += len(out)

    def stop(self) -> tuple[int, ...]:
        for hook in self.hooks:
            hook.remove()
        return tuple(rows // 2 for rows in self.rows.values())  # two pictures


COSTS = [
    # correction; passes begun, passes taken to the end and readings of the adapter, in ten guided steps of one picture
    (Correction(), (20, 20, 0)),
    (Correction(1, "state"), (30, 20, 10)),
    (Correction(1, "input"), (30, 20, 10)),
    (Correction(1, "fused"), (20, 20, 9)),
    (Correction(1, "state", "unit"), (30, 20, 10)),
    (Correction(1, "state", "rms"), (30, 20, 10)),
    (Correction(1, "state", "relative"), (30, 30, 10)),
    (Correction(1, "input", "relative"), (30, 30, 10)),
    (Correction(1, "fused", "relative"), (20, 20, 9)),
    (Correction(1, "state", interval=Interval(0, 0.5)), (25, 20, 5)),
    (Correction(1, "state", interval=Interval(0.2, 0.5)), (23, 20, 3)),
    (Correction(1, "input", interval=Interval(0.5, 1)), (25, 20, 5)),
    (Correction(1, "state", every=3), (24, 20, 4)),
    (Correction(1, "state", interval=Interval(0.5, 1), every=2), (23, 20, 3)),
]


@pytest.mark.parametrize(("correction", "passes"), COSTS, ids=str)
def test_number_of_forward_and_backward_passes(correction: Correction, passes: tuple[int, ...], pocket: World) -> None:
    rows = Rows(pocket)
    with count_passes() as counter:
        pocket.run(correction, steps=10)
    assert rows.stop() == passes
    begun, ended, backward = passes
    spec = pocket.backbone.feature_spec(pocket.adapter.config.unet_feature)
    share = (spec.deepest + 1) / len(pocket.backbone.blocks())
    assert counter.passes / 2 == pytest.approx(ended + share * (begun - ended + backward))


def test_interval_and_every_select_the_steps(pocket: World) -> None:
    def corrected(correction: Correction, scheduler: str = "ddim") -> list[int]:
        denoiser, hooks = pocket.parts(correction)
        before, after = by_hand.States(), by_hand.States()
        denoise(denoiser, pocket.scheduler(scheduler), pocket.noise, 10, hooks=[before, *hooks, after])
        return [
            i
            for i, (uncorrected, corrected_value) in enumerate(zip(before.given, after.given, strict=True))
            if uncorrected is not corrected_value
        ]

    assert corrected(Correction(1)) == list(range(10))
    assert corrected(Correction(1, interval=Interval(0.3, 0.8))) == [3, 4, 5, 6, 7]
    assert corrected(Correction(1, interval=Interval(0.3, 0.8), every=2)) == [3, 5, 7]
    assert corrected(Correction(1, "fused")) == list(range(1, 10))
    assert corrected(Correction(1, "fused", every=4)) == [1, 5, 9]
    assert corrected(Correction(1), "heun") == list(range(0, 19, 2))
    assert corrected(Correction(1), "pndm") == [0, *range(2, 11)]


@pytest.mark.parametrize("target", TARGETS)
def test_dropout_is_off_while_sampling(target: str, pocket: World) -> None:
    adapter = tiny_adapter(pocket.backbone, dropout=0.5).train()
    other = replace(pocket, adapter=adapter)
    first, second = (other.run(Correction(5, target)) for _ in range(2))
    assert torch.equal(first, second)
    assert adapter.training and all(part.training for part in adapter.modules())
    evaluated = replace(pocket, adapter=tiny_adapter(pocket.backbone, dropout=0.5))
    assert torch.equal(evaluated.run(Correction(5, target)), first)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("target", TARGETS)
def test_huge_factor_is_an_error_with_step_and_factor(target: str, norm: str, pocket: World) -> None:
    with pytest.raises(UserError, match=r"no longer finite after step [12] of 2: the correction factor 1e\+38"):
        pocket.run(Correction(1e38, target, "none" if norm == "none" else norm))


@pytest.mark.parametrize("target", TARGETS)
def test_error_names_what_is_not_finite(target: str, pocket: World) -> None:
    """Not every NaN is the factor's fault: the adapter, the guidance scale and the model are named where they are."""
    correction = Correction(3, target, "rms")
    broken = tiny_adapter(pocket.backbone)
    torch.nn.init.constant_(broken.input_proj.weight, float("nan"))
    with pytest.raises(UserError, match="gradient of the adapter's score is not finite: the adapter's weights"):
        replace(pocket, adapter=broken).run(correction)
    with pytest.raises(UserError, match=r"the guidance scale 1e\+38 is too large"):
        pocket.run(correction, scale=1e38)


def test_non_finite_image_is_an_error_without_correction_too(tmp_path: Path) -> None:
    backbone = open_backbone(tiny_models.save(POCKET, tmp_path / "model"), device="cpu")
    with pytest.raises(UserError, match=r"not finite: the guidance scale 1e\+38 is too large"):
        list(draw(backbone, [Request(PROMPT, 0, 0)], SamplingSettings(2, 1e38)))
    torch.nn.init.constant_(backbone.network.conv_out.weight, float("nan"))
    with pytest.raises(UserError, match="the model's own predictions are not finite"):
        list(draw(backbone, [Request(PROMPT, 0, 0)], SamplingSettings(2)))


def test_correction_needs_a_matching_adapter(pocket: World) -> None:
    with pytest.raises(UserError, match="a correction needs an adapter, and there is none"):
        draw(pocket.backbone, [Request(PROMPT, 0, 0)], SamplingSettings(2, correction=Correction(1)))
    foreign = tiny_adapter(pocket.backbone, feature_channels=(99,))
    with pytest.raises(UserError, match="does not fit the model"):
        draw(pocket.backbone, [Request(PROMPT, 0, 0)], SamplingSettings(2, correction=Correction(1)), adapter=foreign)


def test_unknown_scheduler_is_refused(pocket: World) -> None:
    scheduler_config = pocket.backbone.scheduler_config
    sentences = {
        "DEISMultistepScheduler": "cannot move the state of DEISMultistepScheduler: choose one of ddim",
        "PNDMScheduler": "cannot move the state of PNDMScheduler in its Runge-Kutta steps",
    }
    try:
        for name, sentence in sentences.items():
            pocket.backbone.scheduler_config = {**scheduler_config, "_class_name": name, "skip_prk_steps": False}
            for target in ("state", "fused"):
                settings = SamplingSettings(2, scheduler="own", correction=Correction(1, target))
                with pytest.raises(UserError, match=sentence):
                    draw(pocket.backbone, [Request(PROMPT, 0, 0)], settings, adapter=pocket.adapter)
        settings = SamplingSettings(4, scheduler="own", correction=Correction(1, "input"))
        (picture,) = draw(pocket.backbone, [Request(PROMPT, 0, 0)], settings, adapter=pocket.adapter)
        assert picture.isfinite().all()
    finally:
        pocket.backbone.scheduler_config = scheduler_config


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"factor": float("nan")}, "the correction factor must be a number, not nan"),
        ({"factor": float("inf")}, "the correction factor must be a number, not inf"),
        ({"target": "noise"}, "target is one of state, input, fused, not 'noise'"),
        ({"norm": "l2"}, "norm is one of none, unit, rms, relative, not 'l2'"),
        ({"every": 0}, "every step or every few, not every 0"),
        ({"interval": Interval(0.5, 0.5)}, "start to an end with 0 <= start < end <= 1, not 0.5 to 0.5"),
        ({"interval": Interval(-0.1, 0.5)}, "not -0.1 to 0.5"),
        ({"interval": Interval(0.1, 1.5)}, "not 0.1 to 1.5"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Correction(**options)  # type: ignore[arg-type]
