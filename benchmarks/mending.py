"""How far a model leads a picture that is wrong in one fact towards the right one, by noise and by sort of fact.

    python benchmarks/mending.py [RESULT ...] [--scenes 128]

The hard negatives of held-out scenes are noised and denoised once under the caption that is false for them. 0 is what
they show, 1 is the true picture; where noise hides everything, both are guessed at. Beside it the error in z_0 that
true pictures have under the same caption: what should not rise.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from dpt.backbone import Backbone
from dpt.backbone.rng import SampleRNG
from dpt.checkpoints import open_checkpoint
from dpt.cli.common.console import parse_options
from dpt.data.example import Batch, collate
from dpt.data.images import Framing
from dpt.data.pairs import HARD, TRUE
from dpt.data.scenes.negatives import NEGATIVE_TYPES
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.embedded import EMBEDDED, model_location
from dpt.training.tasks.denoising import DENOISED, MENDED
from dpt.training.tasks.noising import NoiseConfig, add_noise_to_batch

TIMESTEPS = (200, 400, 500, 600, 700, 800, 900)


@dataclass(frozen=True)
class Options:
    results: tyro.conf.Positional[tuple[Path, ...]] = ()
    """What has a LoRA; the embedded model by itself comes first."""
    scenes: int = 128


def main(options: Options) -> None:
    backbone = Backbone.open(model_location(EMBEDDED), device="cpu")
    source = SceneSource(POCKET_WORLD, 0, "val", Framing(POCKET_WORLD.image_size))
    examples = [source.example(index) for index in range(options.scenes)]
    kinds = [one.matching.hard_image_type for one in examples if one.matching is not None]
    print("| model | t | " + " | ".join(NEGATIVE_TYPES) + " | error of true pictures |")
    print("|---" * (len(NEGATIVE_TYPES) + 3) + "|")
    show("base", backbone, collate(examples), kinds)
    for path in options.results:
        lora = open_checkpoint(path).attach(backbone)
        if lora is not None:
            show(path.name, backbone, collate(examples), kinds)
            lora.remove()


@torch.no_grad()
def show(name: str, backbone: Backbone, batch: Batch, kinds: list[str | None]) -> None:
    for t in TIMESTEPS:
        seen = add_noise_to_batch(
            backbone, batch, (DENOISED, MENDED), SampleRNG(1, range(len(batch))), NoiseConfig(fix_timestep=t)
        )
        true, wrong = (
            backbone.noise.parts(seen.noisy[picture], backbone.predict(*seen.of((pair,))), seen.t)[0]
            for picture, pair in ((TRUE, DENOISED), (HARD, MENDED))
        )
        whole = (seen.z[TRUE] - seen.z[HARD]).flatten(1)
        gone = ((wrong - seen.z[HARD]).flatten(1) * whole).sum(1) / whole.square().sum(1)
        shares = [gone[[kind == one for one in kinds]].mean() for kind in NEGATIVE_TYPES]
        cells = [name, str(t), *(f"{share:.2f}" for share in shares), f"{(true - seen.z[TRUE]).square().mean():.4f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "mending.py"))
