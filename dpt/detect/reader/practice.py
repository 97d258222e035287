"""Pictures to train the reader on: objects of the pocket world under jitter, and marks that have no name.

They share the renderer's outlines with the scenes of training and of the benchmark, and nothing else: placement, sizes,
colours, defects and jitter are drawn here. What is half way between readable and not is not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import cos, exp, pi, sin

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dpt.claims.facts import Box
from dpt.claims.words import COLOURS
from dpt.data.example import ExampleParts
from dpt.data.scenes.render import outline_distance
from dpt.data.scenes.world import BACKGROUNDS
from dpt.data.stream import ShuffledStream
from dpt.detect.base import Image
from dpt.detect.reader.defects import Floats, Rng, Sketch, spoil
from dpt.detect.reader.detector import UNKNOWN, Mark, ReaderConfig, ReaderTargets, targets, to_pixels
from dpt.detect.test_images import jpeg

COUNTS = (0.02, 0.22, 0.34, 0.2, 0.15, 0.05, 0.02)
"""Chance of 0, 1, 2 … objects."""

ONE_KIND = 0.35
"""Chance that the objects of a picture are of one shape and colour."""

TIDY = 0.5
"""Chance that a picture has no defect."""

DEFECTIVE = 0.4
"""Chance of a defect for each object of the other pictures."""

OVERLAPPING = 0.2
"""Chance that objects of those are placed wherever they fall."""

TRIES = 40


@dataclass(frozen=True)
class PracticePicture:
    image: Image
    marks: tuple[Mark, ...]
    tidy: bool
    nothing_named: bool = False
    """There is no scene: noise or texture."""


def practice_picture(rng: Rng, config: ReaderConfig) -> PracticePicture:
    if rng.random() < 0.02:
        return PracticePicture(_texture(rng, config.side), (), tidy=False, nothing_named=True)
    tidy = rng.random() < TIDY
    sketches = _layout(rng, config, tidy)
    canvas = np.empty((config.side, config.side, 3), np.float32)
    canvas[:] = np.array(BACKGROUNDS["white"]) + rng.normal(0, 3, 3)
    if rng.random() < 0.3:
        slope = rng.normal(0, 8, (2, 3)) * rng.random()
        ramp = np.linspace(-1, 1, config.side)
        canvas += (ramp[:, None, None] * slope[0] + ramp[None, :, None] * slope[1]).astype(np.float32)
    covers = [_painted(sketch, canvas, rng) for sketch in sketches]
    marks = _marks(sketches, covers, config)
    if rng.random() < 0.15:
        marks += _specks(canvas, covers, rng)
    return PracticePicture(_jittered(canvas, rng), tuple(marks), tidy)


def _layout(rng: Rng, config: ReaderConfig, tidy: bool) -> list[Sketch]:
    count = int(rng.choice(len(COUNTS), p=COUNTS))
    one_kind, anywhere = rng.random() < ONE_KIND, not tidy and rng.random() < OVERLAPPING
    kind = rng.integers(len(config.shapes)), rng.integers(len(config.colours))
    sketches: list[Sketch] = []
    boxes: list[Box] = []
    for _ in range(count):
        if not one_kind:
            kind = rng.integers(len(config.shapes)), rng.integers(len(config.colours))
        sketch = _sketch(rng, config, (int(kind[0]), int(kind[1])))
        if not tidy and rng.random() < DEFECTIVE:
            spoil(sketch, rng, config)
        wide, high = sketch.box.width, sketch.box.height
        margin = max(wide, high) / 2 + (0 if anywhere else 0.5)
        if 2 * margin >= config.side:
            continue
        for x, y in rng.uniform(margin, config.side - margin, (TRIES, 2)).tolist():
            box = Box(x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
            if anywhere or all(box.gap_to(other) >= 1 for other in boxes):
                sketch.centre = x, y
                sketches.append(sketch)
                boxes.append(box)
                break
    return sketches


def _sketch(rng: Rng, config: ReaderConfig, label: tuple[int, int]) -> Sketch:
    """An object that is readable: a little stretched, turned and uneven."""
    return Sketch(
        config.shapes[label[0]],
        np.array(COLOURS[config.colours[label[1]]], float) + rng.normal(0, 5, 3),
        (0.0, 0.0),
        float(rng.uniform(18.5, 24.0)),
        label,
        stretch=exp(float(rng.normal(0, 0.04))),
        turn=float(rng.normal(0, 0.03)),
        wobble=abs(float(rng.normal(0, 0.025))),
        softness=float(rng.uniform(0.8, 1.6)),
    )


SPOILT = 0.22
"""An object that misses, gains or has in another colour this share of its area is unreadable..."""

SPARED = 0.07
"""...and one with less than this is readable."""


def _painted(sketch: Sketch, canvas: Floats, rng: Rng) -> Floats:
    """Paint it, and return its cover of each pixel; decides whether what was cut, holed or bumped is readable."""
    side, half, reach = (
        len(canvas),
        sketch.extent / 2,
        0.75 * sketch.extent * max(sketch.stretch, 1 / sketch.stretch) + 3,
    )
    (left, right), (top, bottom) = ((max(0, int(at - reach)), min(side, int(at + reach) + 1)) for at in sketch.centre)
    x = ((np.arange(left, right, dtype=np.float32) + np.float32(0.5 - sketch.centre[0])) / np.float32(half))[None, :]
    y = ((np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - sketch.centre[1])) / np.float32(half))[:, None]
    whole = _outline(sketch, x, y, rng)
    cover, lost = whole, 0.0
    colour: Floats = sketch.colour
    if sketch.hole:
        cover = whole * np.clip(half * (np.hypot(x - sketch.at[0], y - sketch.at[1]) - sketch.hole) + 0.5, 0, 1)
    if sketch.bump:
        disc = np.clip(half * (sketch.bump - np.hypot(x - sketch.at[0], y - sketch.at[1])) + 0.5, 0, 1)
        cover = np.maximum(whole, disc)
    lost = float(np.abs(cover - whole).sum())
    if sketch.cut:
        along = x * cos(sketch.cut_angle) + y * sin(sketch.cut_angle)
        beyond = np.clip(half * (along - 1 + 2 * sketch.cut) + 0.5, 0, 1)
        lost = float((whole * beyond).sum())
        if sketch.second_colour is None:
            cover = whole * (1 - beyond)
        else:
            colour = sketch.colour + beyond[..., None] * (sketch.second_colour - sketch.colour)
            lost = min(lost, float(whole.sum()) - lost)
    if sketch.readable == UNKNOWN and (sketch.cut or sketch.hole or sketch.bump):
        sketch.readable = _spoilt(lost / float(whole.sum()))
    patch = canvas[top:bottom, left:right]
    patch += (cover * np.float32(sketch.alpha))[..., None] * (colour - patch)
    everywhere = np.zeros((side, side), np.float32)
    everywhere[top:bottom, left:right] = cover
    return everywhere


def _outline(sketch: Sketch, x: Floats, y: Floats, rng: Rng) -> Floats:
    """Cover by the whole object; x and y in halves of its extent from its centre."""
    if sketch.wobble:
        waves, phases = rng.integers(2, 6, 2), rng.uniform(0, 2 * pi, 2)
        angle = np.arctan2(y, x)
        swell = 1 + sketch.wobble * (np.sin(waves[0] * angle + phases[0]) + np.sin(waves[1] * angle + phases[1])) / 1.4
        x, y = x / swell, y / swell
    x, y = x / sketch.stretch**0.5, y * sketch.stretch**0.5
    x, y = x * cos(sketch.turn) + y * sin(sketch.turn), y * cos(sketch.turn) - x * sin(sketch.turn)
    distance = outline_distance(sketch.shape, x, y)
    if sketch.other_shape:
        distance = (1 - sketch.mix) * distance + sketch.mix * outline_distance(sketch.other_shape, x, y)
    return np.clip(0.5 - sketch.extent / 2 * distance / sketch.softness, 0, 1)


def _spoilt(share: float) -> int:
    return 0 if share >= SPOILT else 1 if share <= SPARED else UNKNOWN


def _marks(sketches: Sequence[Sketch], covers: Sequence[Floats], config: ReaderConfig) -> list[Mark]:
    """The box of what is seen of each, and whether it is readable after what hides it."""
    marks = []
    for k, (sketch, cover) in enumerate(zip(sketches, covers, strict=True)):
        area = max(float(cover.sum()), 1.0)
        seen, readable = cover, sketch.readable
        for other, above in enumerate(covers):
            if other == k:
                continue
            shared = float(np.minimum(cover, above).sum()) / area
            alike = sketches[other].label[1] == sketch.label[1]
            if other > k or alike:  # hidden by it, or grown together with it
                readable = _worse(readable, _spoilt(shared))
            if other > k:
                seen = np.minimum(seen, 1 - above)
        if float(seen.sum()) < 25:
            continue
        box = _extent(seen)
        if box is not None:
            shape, colour = sketch.label if readable == 1 else (UNKNOWN, UNKNOWN)
            marks.append(Mark(box, shape, colour, readable))
    return marks


def _worse(first: int, second: int) -> int:
    return 0 if 0 in (first, second) else UNKNOWN if UNKNOWN in (first, second) else 1


def _extent(cover: Floats) -> Box | None:
    """The box of a cover, to a fraction of a pixel: a pixel at its rim counts as far as it is covered."""
    columns, rows = cover.max(0), cover.max(1)
    spans = []
    for line in (columns, rows):
        (inside,) = (line > 0.5).nonzero()
        if not len(inside):
            return None
        first, last = int(inside[0]), int(inside[-1])
        low = first - (line[first - 1] if first else 0) + (1 - line[first])
        high = last + 1 + (line[last + 1] if last + 1 < len(line) else 0) - (1 - line[last])
        spans.append((float(low), float(high)))
    (x0, x1), (y0, y1) = spans
    return Box(x0, y0, x1, y1)


def _specks(canvas: Floats, covers: Sequence[Floats], rng: Rng) -> list[Mark]:
    """Small discs on the ground: a fleck is nothing, a stain is unreadable."""
    side = canvas.shape[0]
    y, x = np.mgrid[:side, :side] + 0.5
    marks = []
    for _ in range(int(rng.integers(1, 3))):
        fleck = rng.random() < 0.6
        radius = float(rng.uniform(0.5, 1.6) if fleck else rng.uniform(3.2, 5.5))
        cx, cy = rng.uniform(6, side - 6, 2)
        away = np.hypot(x - cx, y - cy)
        if any((cover[away < radius + 2] > 0.05).any() for cover in covers):
            continue
        colour = np.array(list(COLOURS.values())[rng.integers(len(COLOURS))], float)
        canvas += np.clip(radius - away + 0.5, 0, 1)[..., None] * (colour - canvas)
        if not fleck:
            marks.append(Mark(Box(cx - radius, cy - radius, cx + radius, cy + radius)))
    return marks


def _texture(rng: Rng, side: int) -> Image:
    values = rng.normal(0, 1, (side, side, 3))
    sigma = float(rng.choice((0.0, 0.7, 1.5, 3.0)))
    if sigma:
        values = gaussian_filter(values, (sigma, sigma, 0))
    values = values / values.std() * rng.uniform(30, 80) + rng.uniform(60, 200, 3)
    return np.clip(values, 0, 255).astype(np.uint8)


def _jittered(canvas: Floats, rng: Rng) -> Image:
    """Brightness, colour shift, gamma, blur, noise and compression, each in a part of the pictures."""
    if rng.random() < 0.4:
        canvas = canvas * rng.uniform(0.85, 1.15)
    if rng.random() < 0.4:
        canvas = canvas + rng.uniform(-12, 12, 3)
    if rng.random() < 0.3:
        canvas = 255 * np.clip(canvas / 255, 0, 1) ** rng.uniform(0.8, 1.25)
    if rng.random() < 0.4:
        sigma = rng.uniform(0.3, 1.0)
        canvas = gaussian_filter(canvas, (sigma, sigma, 0))
    if rng.random() < 0.5:
        canvas = canvas + rng.uniform(1, 16) * rng.standard_normal(canvas.shape, np.float32)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return jpeg(int(rng.integers(50, 96)))(image, 0) if rng.random() < 0.1 else image


@dataclass(frozen=True)
class PracticeExample:
    id: str
    picture: PracticePicture
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class PracticeBatch:
    pixels: Tensor
    """(B,3,side,side) in [-1, 1]"""
    targets: ReaderTargets
    pictures: Sequence[PracticePicture]
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PracticeBatch:
        moved = {name: value.to(device, non_blocking=non_blocking) for name, value in vars(self.targets).items()}
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        return replace(self, pixels=pixels, targets=ReaderTargets(**moved))


PASS = 1 << 20
"""Pictures in an epoch; another epoch has others."""


class PracticeStream(ShuffledStream[PracticeExample, PracticeBatch]):
    """Each position is another picture, a function of the seed and the position."""

    def __init__(self, config: ReaderConfig, seed: int, name: str = "train") -> None:
        super().__init__(seed, shuffle=False)
        self.config, self.name = config, name

    def only(self, parts: ExampleParts) -> PracticeStream:
        return self

    def __len__(self) -> int:
        return PASS

    def __getitem__(self, position: int) -> PracticeExample:
        return self.read(position, 0, ())

    def read(self, index: int, epoch: int, skipped: tuple[str, ...]) -> PracticeExample:
        purpose = sum(self.name.encode())
        rng = np.random.default_rng((self.seed, purpose, index))
        return PracticeExample(self.example_id(index), practice_picture(rng, self.config), skipped)

    def collate(self, examples: Sequence[PracticeExample]) -> PracticeBatch:
        pictures = [example.picture for example in examples]
        aims = targets([p.marks for p in pictures], self.config, [p.nothing_named for p in pictures])
        return PracticeBatch(to_pixels([picture.image for picture in pictures]), aims, pictures)

    def example_id(self, position: int) -> str:
        return f"{self.name} picture {position} of seed {self.seed}"
