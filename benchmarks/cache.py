"""What a cache saves: examples per second until latents and text states are in hand, with and without one.

    dpt scenes export --out outputs/scenes300 --num 300
    dpt cache outputs/scenes300 --texts
    python benchmarks/cache.py outputs/scenes300

The ways take turns, batch by batch, so that whatever else the machine does slows all of them.
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from dpt.backbone import Backbone
from dpt.cli.train_data import side
from dpt.data.batch import collate
from dpt.data.cache.latents import CachedLatents
from dpt.data.cache.part import Part
from dpt.data.cache.texts import CachedTexts
from dpt.data.files.root import DataRoot
from dpt.data.files.source import training_files
from dpt.data.framing import Framing
from dpt.data.pairs import encode_pictures, encode_texts, said_in

BATCH = 16
PARTS = ("examples", "latents", "text states")


@torch.no_grad()
def main(root: DataRoot, model: str = "ckpt/pocket") -> None:
    backbone = Backbone.open(model, device="cpu")
    framing = Framing(side(None, backbone))
    cached = CachedLatents(Part.open(root.path / "cache/latents"), root.images(""))
    texts = CachedTexts(Part.open(root.path / "cache/texts"))
    ways = {
        "no cache": (training_files(root, "refall", framing, 0), None),
        "latents": (training_files(root, "refall", framing, 0, cached), None),
        "latents and texts": (training_files(root, "refall", framing, 0, cached), texts),
    }
    seconds: dict[str, list[list[float]]] = {way: [] for way in ways}
    size = len(ways["no cache"][0])
    for first in range(0, size - BATCH + 1, BATCH):
        for way, (source, backbone.known_texts) in ways.items():
            clock = [time.perf_counter()]
            batch = collate([source[index] for index in range(first, first + BATCH)])
            clock.append(time.perf_counter())
            encode_pictures(backbone, batch, (0, 1, 2))
            clock.append(time.perf_counter())
            encode_texts(backbone, said_in(batch))
            clock.append(time.perf_counter())
            seconds[way].append([after - before for before, after in pairwise(clock)])
    heads = " | ".join(f"{part}, ms" for part in PARTS)
    print(f"| {size // BATCH} batches of {BATCH} | {heads} | examples/s | against none |")
    print("|---|---|---|---|---|---|")
    whole = {way: [sum(batch) for batch in batches] for way, batches in seconds.items()}
    for way, batches in seconds.items():
        parts = " | ".join(f"{1e3 * statistics.median(column):.1f}" for column in zip(*batches, strict=True))
        ratios = sorted(base / own for base, own in zip(whole["no cache"], whole[way], strict=True))
        tenth = len(ratios) // 10
        spread = f"{statistics.median(ratios):.1f}x ({ratios[tenth]:.1f}-{ratios[-1 - tenth]:.1f})"
        print(f"| {way} | {parts} | {BATCH / statistics.median(whole[way]):.0f} | {spread} |")
    print(rounding(backbone, torch.cat([ways["no cache"][0][index].image.values[None] for index in range(8 * BATCH)])))


def rounding(backbone: Backbone, pixels: Tensor) -> str:
    """What latents lose by another batch size, and by float16, beside how far the posterior is spread."""
    alone = torch.cat([backbone.encode_images(one) for one in pixels.split(1)])
    together = torch.cat([backbone.encode_images(some) for some in pixels.split(BATCH)])
    spread = backbone.vae.encode(pixels).latent_dist.std * backbone.vae.config.scaling_factor
    differences = {"another batch": together - alone, "float16": alone.half().float() - alone}
    told = [f"{name} {_size(one):.1e} (at most {one.abs().max():.1e})" for name, one in differences.items()]
    return f"root mean square: {', '.join(told)}, the posterior {_size(spread):.2g}, latents {_size(alone):.2g}"


def _size(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


if __name__ == "__main__":
    main(DataRoot(Path(sys.argv[1])), *sys.argv[2:])
