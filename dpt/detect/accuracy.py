"""Accuracy of a detector on rendered scenes, whose content is known, and on their VAE reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpt.claims.facts import Prompt, overlap
from dpt.claims.judge import Detection, Detections, judge
from dpt.claims.words import caption_text
from dpt.data.scenes.captions import NEGATIVE_TYPES, describe_scene, false_description
from dpt.data.scenes.world import Scene, SceneObject, World
from dpt.detect.base import Image
from dpt.errors import fail
from dpt.intervals import wilson
from dpt.keyed_random import KeyedRandom

CORRECT_IOU = 0.8
"""Least IoU of a correct box with the object's box."""

MATCH_IOU = 0.3
"""Least IoU at which a detection is matched with an object."""


@dataclass(frozen=True)
class DetectionCounts:
    """Counts over scenes and their objects. `right + wrong + unreadable + missed == objects`."""

    scenes: int = 0
    exact: int = 0
    """Scenes with every object right, no extra detection and nothing unreadable."""
    objects: int = 0
    right: int = 0
    wrong: int = 0
    """Objects detected with a wrong shape, colour, size or box."""
    unreadable: int = 0
    missed: int = 0
    extra: int = 0
    """Detections where there is no object."""

    def __add__(self, other: DetectionCounts) -> DetectionCounts:
        return DetectionCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def count_detections(scenes: Iterable[Scene], detections: Iterable[Detections]) -> DetectionCounts:
    return sum((compare(*pair) for pair in zip(scenes, detections, strict=True)), DetectionCounts())


def compare(scene: Scene, detections: Detections) -> DetectionCounts:
    unmatched = list(detections.objects)
    right = wrong = unreadable = missed = 0
    for thing in scene.objects:
        match = max(unmatched, key=lambda detection: overlap(thing.box, detection.box), default=None)
        if match is not None and overlap(thing.box, match.box) >= MATCH_IOU:
            unmatched.remove(match)
            right += is_right(thing, match)
            wrong += not is_right(thing, match)
        elif any(overlap(thing.box, region.box) > 0 for region in detections.unreadable):
            unreadable += 1
        else:
            missed += 1
    exact = right == len(scene.objects) and not unmatched and not detections.unreadable
    return DetectionCounts(1, int(exact), len(scene.objects), right, wrong, unreadable, missed, len(unmatched))


def is_right(thing: SceneObject, detection: Detection) -> bool:
    same = (detection.label, detection.colour, detection.size) == (thing.shape, thing.colour, thing.size)
    return same and overlap(thing.box, detection.box) >= CORRECT_IOU


def refusals(detections: Iterable[Detections]) -> tuple[int, int, int]:
    """Of images without a nameable object: how many got an object, only unreadable regions, or nothing."""
    images = list(detections)
    named = sum(bool(image.objects) for image in images)
    unreadable = sum(bool(image.unreadable) and not image.objects for image in images)
    return named, unreadable, len(images) - named - unreadable


@dataclass(frozen=True)
class CaptionRow:
    """A row of the table: captions of scenes, true or with one fact changed, and how often they are judged so."""

    name: str
    right: int
    captions: int

    @staticmethod
    def heading() -> str:
        return f"{'captions':<24}{'judged right':>26}{'of':>8}"

    def __str__(self) -> str:
        return f"{self.name:<24}{_rate(self.right, self.captions):>26}{self.captions:>8}"


def caption_rows(
    scenes: Sequence[Scene], detections: Sequence[Detections], world: World, seed: int
) -> list[CaptionRow]:
    """How often a true caption of each scene passes, and captions with one false fact, of each type, fail.

    An image may hold no more than its caption says, where the caption is of the whole scene.
    """
    hits: dict[str, list[int]] = {}
    for index, (scene, found) in enumerate(zip(scenes, detections, strict=True)):
        rng = KeyedRandom("captions of a check", seed, index)
        true = describe_scene(scene, world, rng)
        whole = sum(group.n for group in true.groups) == len(scene.objects)
        false = {kind: false_description(true, scene, kind, world, rng) for kind in NEGATIVE_TYPES}
        denied = replace(true, relation=None, absent=rng.choice(true.groups).noun)
        for name, described in {"true": true, **{f"false {k}": d for k, d in false.items()}, "denied": denied}.items():
            if described is not None:
                prompt = Prompt(f"{name}-{index}", name, caption_text(described), described.facts, closed=whole)
                hits.setdefault(name, []).append(judge(prompt, found).passed == (name == "true"))
    return [CaptionRow(name, sum(hit), len(hit)) for name, hit in hits.items()]


@dataclass(frozen=True)
class AccuracyRow:
    """A row of the table: scenes under one disturbance."""

    name: str
    counts: DetectionCounts

    @staticmethod
    def heading() -> str:
        return (
            f"{'pictures':<16}{'scenes all right':>26}{'objects right':>26}"
            f"{'wrong':>8}{'unreadable':>12}{'missed':>8}{'extra':>7}"
        )

    def __str__(self) -> str:
        counts = self.counts
        return (
            f"{self.name:<16}{_rate(counts.exact, counts.scenes):>26}{_rate(counts.right, counts.objects):>26}"
            f"{counts.wrong:>8}{counts.unreadable:>12}{counts.missed:>8}{counts.extra:>7}"
        )


@dataclass(frozen=True)
class UnnameableRow:
    """A row of the table: images without a nameable object."""

    name: str
    named: int
    unreadable: int
    nothing: int

    @staticmethod
    def heading() -> str:
        return f"{'unnameable content':<24}{'detected as an object':>26}{'unreadable':>12}{'no detection':>14}"

    def __str__(self) -> str:
        total = self.named + self.unreadable + self.nothing
        return f"{self.name:<24}{_rate(self.named, total):>26}{self.unreadable:>12}{self.nothing:>14}"

    def counts(self) -> dict[str, int]:
        return {"named": self.named, "unreadable": self.unreadable, "nothing": self.nothing}


def _rate(hits: int, total: int) -> str:
    low, high = wilson(hits, total)
    return f"{hits / max(total, 1):.2%} [{100 * low:.2f}, {100 * high:.2f}]"


RoundTrip = Callable[[Sequence[Image]], list[Image]]


def open_vae(folder: Path) -> Any:
    """The VAE of a diffusers model folder, or of a folder that is itself a VAE, in float32."""
    vae_folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (vae_folder / "config.json").is_file():
        fail(f"{folder} holds no VAE: it has no {vae_folder / 'config.json'}")

    from diffusers import AutoencoderKL

    try:
        return AutoencoderKL.from_pretrained(vae_folder, local_files_only=True).float().eval()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        fail(f"the VAE in {vae_folder} cannot be opened: {reason[0] if reason else type(error).__name__}")


def open_round_trip(folder: Path, batch: int = 32) -> RoundTrip:
    """A function that encodes and decodes images with the VAE of a folder."""
    import torch

    vae = open_vae(folder)
    unit = 2 ** (len(vae.config["block_out_channels"]) - 1)

    @torch.inference_mode()
    def round_trip(images: Sequence[Image]) -> list[Image]:
        decoded: list[Image] = []
        for start in range(0, len(images), batch):
            pixels = np.stack(images[start : start + batch])
            if pixels.shape[1] % unit or pixels.shape[2] % unit:
                fail(f"the VAE of {folder} needs image sides divisible by {unit}, not {pixels.shape[1:3]}")
            values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            back = vae.decode(vae.encode(values).latent_dist.mode()).sample
            levels = ((back + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            decoded.extend(levels.permute(0, 2, 3, 1).numpy())
        return decoded

    return round_trip
