"""How fast examples come: scenes rendered on the spot, and files with and without what `dpt cache` puts beside them.

    python benchmarks/data.py [--examples 96] [--rounds 3] [--out docs/results/performance]

Files are scenes in the formats of COCO, made for this in a folder that is thrown away. An example counts when its
pixels or latents and its texts' states are in hand. The ways take turns, batch by batch.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from timing import compared, in_turns, keep, table
from torch import Tensor

from dpt.backbone import Backbone, open_backbone
from dpt.cli.common.console import parse_options
from dpt.cli.main import run as dpt
from dpt.data.cache.latents import CachedLatents
from dpt.data.cache.storage import CachePart
from dpt.data.cache.texts import CachedTexts
from dpt.data.example import collate
from dpt.data.files.reading import DataRoot
from dpt.data.files.source import training_files
from dpt.data.images import Framing
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.data.stream import encode_pair_images, encode_texts, texts_of
from dpt.embedded import EMBEDDED, model_location

BATCH = 16


@dataclass(frozen=True)
class Options:
    examples: int = 96
    rounds: int = 3
    out: Path | None = None


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "scenes"
        for words in (["scenes", "export", "--out", str(root), "--num", str(options.examples)],
                      ["cache", str(root), "--texts"]):  # fmt: skip
            dpt(words)
        measured(options, DataRoot(root))


@torch.no_grad()
def measured(options: Options, root: DataRoot) -> None:
    backbone = open_backbone(model_location(EMBEDDED), device="cpu", dtype="float32")
    framing = Framing.for_model(backbone, None)
    latents = CachedLatents(CachePart.open(root.path / "cache/latents"), root.images(""))
    texts = CachedTexts(CachePart.open(root.path / "cache/texts"))
    scenes = SceneSource(POCKET_WORLD, 0, "train", framing)
    plain, cached = training_files(root, "refall", framing, 0), training_files(root, "refall", framing, 0, latents)
    sources = {
        "files": (plain, None, False), "scenes": (scenes, None, False), "files, latents cached": (cached, None, False),
        "files, encoded": (plain, None, True), "scenes, encoded": (scenes, None, True),
        "files, latents cached, encoded": (cached, None, True),
        "files, latents and texts cached, encoded": (cached, texts, True),
    }  # fmt: skip
    size = min(options.examples, len(plain)) // BATCH * BATCH

    def read(name: str) -> None:
        source, text_cache, encoded = sources[name]
        for first in range(0, size, BATCH):
            batch = collate([source.example(index) for index in range(first, first + BATCH)])
            if text_cache is not None:
                prompts = [prompt for own in texts_of(batch).values() for prompt in own]
                batch = replace(batch, encoded=text_cache.read(prompts))
            if encoded:
                encode_pair_images(backbone, batch, (0, 1, 2))
                encode_texts(backbone, batch, texts_of(batch))

    timed = compared(in_turns({name: partial(read, name) for name in sources}, options.rounds, torch.device("cpu")))
    rows = [
        [one.name, f"{1e3 * size / one.ms:,.0f}", f"{one.ms / size * BATCH:.3g}", one.compared] for one in timed
    ]  # fmt: skip
    heads = [f"{size} examples", "examples/s", f"ms a batch of {BATCH}", "time against files (range)"]
    pixels = torch.stack([plain.example(index).image.values for index in range(size)])
    text = f"{table(heads, rows)}\n\nLatents, {rounding(backbone, pixels)}."
    keep(options.out, "data", text, {"options": options, "times": timed}, torch.device("cpu"))


def rounding(backbone: Backbone, pixels: Tensor) -> str:
    """What latents lose by another batch size, and by float16, beside how far the posterior is spread."""
    alone = torch.cat([backbone.encode_images(one) for one in pixels.split(1)])
    together = torch.cat([backbone.encode_images(some) for some in pixels.split(BATCH)])
    vae = backbone.modules()[-2]
    spread = vae.encode(pixels).latent_dist.std * vae.config.scaling_factor
    differences = {"another batch": together - alone, "float16": alone.half().float() - alone}
    parts = [f"{name} {_size(one):.1e} (at most {one.abs().max():.1e})" for name, one in differences.items()]
    return f"root mean square: {', '.join(parts)}, the posterior {_size(spread):.2g}, latents {_size(alone):.2g}"


def _size(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "data.py"))
