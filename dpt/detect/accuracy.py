"""How well a detector reads scenes whose content is known, also after a VAE round trip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from dpt.claims.boxes import overlap
from dpt.claims.detections import Detection, Detections
from dpt.data.scenes.world import Scene, SceneObject
from dpt.detect.base import Image
from dpt.errors import fail
from dpt.intervals import wilson

SAME_PLACE = 0.8
"""Least intersection over union of a right box."""

OVERLAPS = 0.3
"""Least intersection over union of two boxes that are about the same thing."""


@dataclass(frozen=True)
class Tally:
    """Counts over scenes and their objects. `right + wrong + unreadable + missed == objects`."""

    scenes: int = 0
    exact: int = 0
    """Scenes with every object right, none added and nothing unreadable."""
    objects: int = 0
    right: int = 0
    wrong: int = 0
    """Objects named with a wrong shape, colour, size or box: the detector's real errors."""
    unreadable: int = 0
    missed: int = 0
    extra: int = 0
    """Detections where there is no object."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def tally(scenes: Iterable[Scene], seen: Iterable[Detections]) -> Tally:
    return sum((compare(scene, detections) for scene, detections in zip(scenes, seen, strict=True)), Tally())


def compare(scene: Scene, seen: Detections) -> Tally:
    left = list(seen.objects)
    right = wrong = unreadable = missed = 0
    for thing in scene.objects:
        match = max(left, key=lambda detection: overlap(thing.box, detection.box), default=None)
        if match is not None and overlap(thing.box, match.box) >= OVERLAPS:
            left.remove(match)
            right += is_right(thing, match)
            wrong += not is_right(thing, match)
        elif any(overlap(thing.box, region.box) > 0 for region in seen.unreadable):
            unreadable += 1
        else:
            missed += 1
    exact = right == len(scene.objects) and not left and not seen.unreadable
    return Tally(1, int(exact), len(scene.objects), right, wrong, unreadable, missed, len(left))


def is_right(thing: SceneObject, detection: Detection) -> bool:
    same = (detection.label, detection.colour, detection.size) == (thing.shape, thing.colour, thing.size)
    return same and overlap(thing.box, detection.box) >= SAME_PLACE


def refusals(seen: Iterable[Detections]) -> tuple[int, int, int]:
    """Of pictures without a nameable object: how many were named, called unreadable, or left empty."""
    pictures = list(seen)
    named = sum(bool(each.objects) for each in pictures)
    unreadable = sum(bool(each.unreadable) and not each.objects for each in pictures)
    return named, unreadable, len(pictures) - named - unreadable


@dataclass(frozen=True)
class AccuracyRow:
    """One line of the table: scenes after one disturbance."""

    name: str
    tally: Tally

    @staticmethod
    def heading() -> str:
        return (
            f"{'pictures':<16}{'scenes all right':>26}{'objects right':>26}"
            f"{'wrong':>8}{'unreadable':>12}{'missed':>8}{'extra':>7}"
        )

    def __str__(self) -> str:
        t = self.tally
        return (
            f"{self.name:<16}{_share(t.exact, t.scenes):>26}{_share(t.right, t.objects):>26}"
            f"{t.wrong:>8}{t.unreadable:>12}{t.missed:>8}{t.extra:>7}"
        )


@dataclass(frozen=True)
class UnnameableRow:
    """One line of the table: pictures of what has no name."""

    name: str
    named: int
    unreadable: int
    nothing: int

    @staticmethod
    def heading() -> str:
        return f"{'without a name':<24}{'named nevertheless':>26}{'unreadable':>12}{'nothing seen':>14}"

    def __str__(self) -> str:
        total = self.named + self.unreadable + self.nothing
        return f"{self.name:<24}{_share(self.named, total):>26}{self.unreadable:>12}{self.nothing:>14}"

    def counts(self) -> dict[str, int]:
        return {"named": self.named, "unreadable": self.unreadable, "nothing": self.nothing}


def _share(hits: int, total: int) -> str:
    low, high = wilson(hits, total)
    return f"{hits / max(total, 1):.2%} [{100 * low:.2f}, {100 * high:.2f}]"


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
