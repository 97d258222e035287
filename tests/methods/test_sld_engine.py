"""The edit engine on a model in closed form: every operation, their controls, and what must not change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dpt.claims.facts import Box, Noun
from dpt.claims.layout import Edit, Layout, diff, layout_of, to_fractions
from dpt.detect.masks import box_mask, dilated
from dpt.methods.sld.engine import EditEngine
from dpt.methods.sld.objects import Sprite, compose, fill, fitted, recoloured
from dpt.methods.sld.settings import EngineSettings
from dpt.sampling.guidance import paste_back, to_cells
from dpt.sampling.loop import FRESH, FollowTrajectory, denoise, inverted_trajectory, noised_trajectory
from dpt.sampling.schedulers import make_scheduler
from tests.methods.palette import CELL, PALETTE, PaletteBackbone, PaletteDetector, PaletteMasks, scene

START = [("red", (2, 3, 9, 8)), ("green", (18, 4, 8, 8)), ("blue", (4, 20, 8, 9))]

REGIONS = EngineSettings(
    num_timesteps=10, fill="noise", add="region", attribute="region", attribute_strength=1.0, margin=0, context=0
)


class NoObjects:
    def make(self, noun: Noun, seed: int) -> Sprite | None:
        return None


def engine(settings: EngineSettings = REGIONS, masks: Any = None, backbone: Any = None) -> EditEngine:
    return EditEngine(backbone or PaletteBackbone(), masks or PaletteMasks(), NoObjects(), settings, 1.0)


def seen(image: np.ndarray) -> Layout:
    (detections,) = PaletteDetector().detect([image])
    return layout_of(detections, image.shape[1], image.shape[0])


def moved_to(layout: Layout, **goals: tuple[int, int, int, int] | None) -> Layout:
    """The layout with objects, by colour, at other cells, or gone."""
    boxes = {name: goal and to_fractions(Box(*(CELL * v for v in (goal[0], goal[1], goal[0] + goal[2], goal[1] + goal[3]))), 256, 256) for name, goal in goals.items()}  # fmt: skip  # noqa: E501
    result = []
    for thing in layout:
        box = boxes.get(thing.noun.colour or "", thing.box)
        if box is not None:
            result.append(replace(thing, box=box))
    return tuple(result)


def same_scene(image: np.ndarray, goal: Layout) -> bool:
    """Whether exactly the goal's objects are there, every edge within a cell."""
    objects = {thing.noun.colour: thing.box for thing in seen(image)}
    if sorted(thing.noun.colour or "" for thing in seen(image)) != sorted(thing.noun.colour or "" for thing in goal):
        return False
    edges = [abs(getattr(objects[t.noun.colour], e) - getattr(t.box, e)) * 32 for t in goal for e in ("x0", "y0", "x1", "y1")]  # fmt: skip  # noqa: E501
    return max(edges, default=0) <= 1.01


def plans() -> dict[str, Layout]:
    start = seen(scene(START))
    cyan = replace(start[0], id="cyan square #1", noun=Noun("cyan", "square"))
    added = replace(cyan, box=to_fractions(Box(17 * CELL, 18 * CELL, 27 * CELL, 27 * CELL), 256, 256))
    return {
        "delete": moved_to(start, red=None),
        "move": moved_to(start, red=(20, 17, 9, 8)),
        "resize": moved_to(start, green=(17, 3, 11, 11)),
        "add": (*start, added),
        "attribute": tuple(replace(t, noun=Noun("yellow", "square")) if t.noun.colour == "red" else t for t in start),
        "all at once": (*moved_to(start, red=None, green=(18, 7, 8, 8)), added),
    }


PROMPTS = "red green blue cyan yellow"


CASES = [(name, trajectory) for name in plans() for trajectory in ("noise", "ddim")]


@pytest.mark.parametrize(("name", "trajectory"), [case for case in CASES if case != ("attribute", "ddim")])
def test_every_operation_gives_exactly_the_goal(name: str, trajectory: Any) -> None:
    image, goal = scene(START), plans()[name]
    edits = diff(seen(image), goal)
    prompt = " ".join(thing.noun.colour or "" for thing in goal if thing.id in {t.id for t in seen(image)})
    for seed in range(2):
        edited = engine(replace(REGIONS, trajectory=trajectory)).edit(image, edits, prompt, seed)
        assert same_scene(edited.image, goal), (name, seed, seen(edited.image))
        away = ~dilated(edited.mask, CELL)
        assert np.array_equal(edited.image[away], image[away])


class HalfMasks(PaletteMasks):
    def masks(self, image: np.ndarray, boxes: Any) -> list[np.ndarray]:
        halves = [Box(b.x0, b.y0, (b.x0 + b.x1) / 2, b.y1) for b in boxes]
        return super().masks(image, halves)


def test_broken_engines_fail_the_same_check() -> None:
    image, start = scene(START), seen(scene(START))
    goals = plans()

    def holds(name: str, one: EditEngine) -> bool:
        edited = one.edit(image, diff(start, goals[name]), "green blue red" if name != "delete" else "green blue", 0)
        return same_scene(edited.image, goals[name])

    assert not holds("delete", engine(masks=HalfMasks()))
    frozen = replace(REGIONS, attribute_strength=0.0)
    assert not holds("attribute", engine(frozen))  # nothing is denoised again
    unprompted = engine()
    unprompted._denoiser = lambda prompt, negative="": type(unprompted)._denoiser(unprompted, "red green blue")  # type: ignore[method-assign]
    assert not holds("add", unprompted)  # without a prompt of its own the region stays background


def test_without_edits_the_image_is_returned_and_the_model_not_called() -> None:
    backbone = PaletteBackbone()
    image = scene(START)
    edited = engine(backbone=backbone).edit(image, diff(seen(image), seen(image)), "red", 0)
    assert edited.image is image
    assert backbone.calls == 0
    assert not edited.mask.any()


def test_pasting_back_keeps_pixels_that_the_model_would_change() -> None:
    image = scene(START)
    image[::3, ::5] -= 3  # texture that latents cannot hold
    edits = diff(seen(scene(START)), plans()["delete"])
    kept, drifted = (
        engine(replace(REGIONS, paste=paste)).edit(image, edits, "green blue", 0) for paste in (True, False)
    )
    away = ~dilated(kept.mask, CELL)
    assert np.array_equal(kept.image[away], image[away])
    assert not np.array_equal(drifted.image[away], image[away])


def test_the_same_seed_gives_the_same_bits() -> None:
    image, edits = scene(START), diff(seen(scene(START)), plans()["add"])
    first, again, other = (engine().edit(image, edits, "red green blue", seed).image for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    different = np.any(first != other, axis=-1)
    assert not different[: 15 * CELL].any()  # only where the object was drawn


@pytest.mark.parametrize("size", [(250, 256), (72, 260), (131, 97), (320, 512), (520, 776), (1024, 640)])
def test_any_size_is_edited_and_what_is_no_whole_cell_padded(size: tuple[int, int]) -> None:
    image = scene(START, side=128)[: size[0], : size[1]]
    thing = seen(scene(START))[0]
    gone = Edit(replace(thing, box=to_fractions(Box(16, 24, 88, 88), size[1], size[0])), None)
    edited = engine().edit(image, [gone], "green blue", 0)
    assert edited.image.shape == image.shape
    assert np.abs(edited.image[30:60, 20:80].astype(int) - PALETTE["white"]).max() < 30


class Still:
    """A network that predicts no noise."""

    def __init__(self, prediction: str, spacing: str) -> None:
        self.inner = PaletteBackbone(prediction, spacing)
        self.noise, self.scheduler_config = self.inner.noise, self.inner.scheduler_config

    def predict(self, x: torch.Tensor, t: Any, condition: Any) -> torch.Tensor:
        if self.noise.prediction_type == "epsilon":
            return torch.zeros_like(x)
        level = torch.as_tensor(t).reshape(-1)[0]
        abar = self.noise.alphas_cumprod[level]
        return -((1 - abar) / abar).sqrt() * x  # v of x0 = x / sqrt(abar)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [5, 10, 50])
def test_inversion_and_sampling_are_inverse_to_each_other(steps: int, spacing: str) -> None:
    backbone: Any = Still("epsilon", spacing)
    scheduler = make_scheduler("ddim", backbone.scheduler_config)
    scheduler.set_timesteps(steps)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    trajectory = inverted_trajectory(backbone, z, backbone.inner.encode_text([""]), scheduler.timesteps)
    assert len(trajectory) == steps + 1
    for k, t in enumerate(scheduler.timesteps):  # no noise was added, so the level shows in the scale
        scale = (backbone.noise.alphas_cumprod[t] / backbone.noise.alphas_cumprod[0]).sqrt()
        assert torch.allclose(trajectory[k], z * scale, atol=1e-5)
    back = denoise(lambda x, t: backbone.predict(x, t, None), scheduler, trajectory[0], steps)
    assert (back - z).abs().max() < 1e-5
    half = steps // 2
    again = denoise(lambda x, t: backbone.predict(x, t, None), scheduler, trajectory[half], steps, start=half)
    assert (again - z).abs().max() < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_noised_trajectory_has_the_level_of_each_step(prediction: str) -> None:
    backbone = PaletteBackbone(prediction, "trailing")
    scheduler = make_scheduler("ddim", backbone.scheduler_config)
    scheduler.set_timesteps(10)
    z, eps = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), -1.0)
    trajectory = noised_trajectory(backbone.noise, z, eps, scheduler.timesteps)
    abar = backbone.noise.alphas_cumprod[scheduler.timesteps]

    def has_the_levels(entries: list[torch.Tensor]) -> bool:
        expected = [abar[k].sqrt() * z + (1 - abar[k]).sqrt() * eps for k in range(10)]
        return all(torch.allclose(a, b) for a, b in zip(entries, expected, strict=False)) and torch.equal(
            entries[10], z
        )

    assert len(trajectory) == 11 and has_the_levels(trajectory)
    assert not has_the_levels([*trajectory[1:], z])  # shifted by a step
    assert not has_the_levels(trajectory[::-1])


def test_where_everything_is_frozen_to_the_end_the_composition_comes_back() -> None:
    backbone: Any = PaletteBackbone()
    scheduler = make_scheduler("ddim", backbone.scheduler_config)
    scheduler.set_timesteps(6)
    z, eps = (torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    trajectory = noised_trajectory(backbone.noise, z, eps, scheduler.timesteps)
    hook = FollowTrajectory(trajectory, torch.full((1, 1, 5, 5), 6))
    condition = backbone.encode_text(["red"])
    for start in (0, hook.start):
        latents = denoise(
            lambda x, t: backbone.predict(x, t, condition), scheduler, trajectory[start], 6, hooks=(hook,), start=start
        )
        assert torch.equal(latents, trajectory[6])


def test_cells_follow_the_trajectory_until_their_release() -> None:
    trajectory = [torch.full((1, 1, 1, 3), float(k)) for k in range(5)]
    hook = FollowTrajectory(trajectory, torch.tensor([[[[FRESH, 2, 4]]]]))
    assert hook.start == 0
    assert hook.initial(torch.full((1, 1, 1, 3), 9.0)).flatten().tolist() == [9, 0, 0]
    scheduler = make_scheduler("ddim", PaletteBackbone().scheduler_config)
    final = denoise(lambda x, t: torch.zeros_like(x), scheduler, hook.initial(trajectory[0]), 4, hooks=(hook,))
    assert final.flatten()[2] == 4  # to the end
    assert final.flatten()[1] not in (2, 4)  # free after its release
    assert FollowTrajectory(trajectory, torch.tensor([[[[2, 3, 4]]]])).start == 2


def test_small_objects_survive_in_cells() -> None:
    mask = np.zeros((64, 64), bool)
    mask[33:35, 15:17] = True
    cells = to_cells(mask, 8)
    assert cells.flatten().nonzero().flatten().tolist() == [4 * 8 + 1, 4 * 8 + 2]
    assert int(to_cells(mask, 8, dilate=1).sum()) == 12


def test_paste_back_is_exact_from_the_feather_on() -> None:
    source, edited = torch.rand(3, 40, 40), torch.rand(3, 40, 40)
    mask = box_mask(Box(10, 10, 20, 20), 40, 40)
    pasted = paste_back(source, edited, mask, 4)
    assert torch.equal(pasted[:, mask], edited[:, mask])
    away = torch.from_numpy(~dilated(mask, 4))
    assert torch.equal(pasted[:, away], source[:, away])
    assert torch.equal(paste_back(source, edited, np.zeros((40, 40), bool), 4), source)


def test_objects_are_pasted_centred_in_their_goals_also_at_the_border() -> None:
    image = scene([("red", (2, 2, 4, 4))])
    sprite = Sprite(image, PaletteMasks().masks(image, [Box(16, 16, 48, 48)])[0], Box(16, 16, 48, 48))
    for goal in (Box(100, 60, 132, 92), Box(224, 224, 256, 256), Box(0, 100, 64, 164)):
        pixels, mask = fitted(sprite, goal, 256, 256)
        rows, columns = np.nonzero(mask)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(box, (goal.x0, goal.y0, goal.x1, goal.y1))).max() <= 1
        inner = box_mask(Box(goal.x0 + 2, goal.y0 + 2, goal.x1 - 2, goal.y1 - 2), 256, 256)
        assert np.abs(pixels[inner].astype(int) - PALETTE["red"]).max() <= 1


def test_holes_are_filled_from_their_surroundings() -> None:
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None] * 3, (50, 60, 3)).copy()
    hole = box_mask(Box(20, 10, 35, 30), 50, 60)
    broken = ramp.copy()
    broken[hole] = 255
    assert np.abs(fill(broken, hole).astype(int) - ramp).max() < 25
    assert np.array_equal(fill(broken, hole)[~hole], ramp[~hole])


def test_kept_neighbours_are_neither_erased_nor_filled_from() -> None:
    image = scene([("red", (4, 4, 8, 8)), ("blue", (12, 4, 8, 8))])
    red, blue = PaletteMasks().masks(image, [Box(32, 32, 96, 96), Box(96, 32, 160, 96)])
    composed = compose(image, [red], [], 4, kept=[blue])
    assert np.array_equal(composed.image[blue], image[blue])
    assert np.abs(composed.image[red].astype(int) - PALETTE["white"]).max() < 3
    assert not np.array_equal(compose(image, [red], [], 4).image[blue], image[blue])


def test_large_objects_are_pasted_under_small_ones() -> None:
    image = scene([("red", (1, 1, 10, 10)), ("blue", (20, 20, 3, 3))])
    boxes = [Box(8, 8, 88, 88), Box(160, 160, 184, 184)]
    sprites = [Sprite(image, m, b) for m, b in zip(PaletteMasks().masks(image, boxes), boxes, strict=True)]
    goal = Box(100, 100, 124, 124)
    for order in (sprites, sprites[::-1]):
        placed = [(s, Box(80, 80, 160, 160) if s is sprites[0] else goal) for s in order]
        composed = compose(image, [s.mask for s in sprites], placed, 1)
        assert tuple(composed.image[112, 112]) == PALETTE["blue"]
        assert composed.erased[20, 20]
        assert not composed.erased[112, 112]


def test_recolouring_keeps_the_background_and_the_shape() -> None:
    image = scene([("red", (8, 8, 8, 8))])
    sprite = Sprite(image, dilated(box_mask(Box(64, 64, 128, 128), 256, 256), 2), Box(64, 64, 128, 128))
    blue = recoloured(sprite, (0, 0, 255))
    assert np.abs(blue.image[96, 96].astype(int) - (0, 0, 255)).max() <= 2
    outside = ~box_mask(Box(64, 64, 128, 128), 256, 256)
    assert np.array_equal(blue.image[outside], image[outside])
