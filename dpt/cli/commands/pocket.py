"""`dpt pocket build`: make the embedded model from nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpt.errors import fail
from dpt.generation_defaults import generation_defaults

if TYPE_CHECKING:
    from dpt.distributed import Processes


@dataclass(frozen=True)
class BuildOptions:
    """Train the stages of the pocket model and write it as a diffusers folder. A stopped build resumes."""

    out: Path = Path("ckpt/pocket")
    """Where the finished model goes."""
    work: Path = Path("runs/pocket")
    """Where the stages keep their checkpoints and latents."""
    recipe: Path | None = None
    """A recipe file; default: the one for making the model from nothing."""
    start: Path | None = None
    """A finished model whose denoiser to train further; its CLIP and VAE stay as they are."""
    minutes: float | None = None
    """Stop after so many minutes; the same command continues."""
    last: str = "unet"
    """The last stage to train: clip, vae or unet."""
    device: str | None = None
    """cpu, or cuda where minutes do what takes hours on a CPU; default: cuda if there is one."""
    processes: int = 1
    """Processes that share each batch of the denoiser. One per core is faster than one with many threads."""
    threads: int | None = None
    """CPU threads of each process; default: one when there are several processes, else what torch chooses."""


def build(options: BuildOptions) -> None:
    from dpt.distributed import launch
    from dpt.pocket.build import STAGES

    if options.last not in STAGES:
        fail(f"there is no stage {options.last!r}; the stages are {', '.join(STAGES)}")
    if options.start is not None and options.last != "unet":
        fail("--start keeps CLIP and VAE as they are and trains the unet alone: leave --last out")
    if options.processes < 1:
        fail(f"--processes must be at least 1, not {options.processes}")
    until = None if options.minutes is None else time.time() + 60 * options.minutes
    launch(options.processes, partial(_build, options, until))


def _build(options: BuildOptions, until: float | None, processes: Processes) -> None:
    import torch

    from dpt.backbone.device import resolve_device
    from dpt.pocket.build import build as build_pocket
    from dpt.pocket.recipe import RECIPE_FILE, read_recipe

    threads = options.threads or (1 if processes.count > 1 else None)
    if threads:
        torch.set_num_threads(threads)
    recipe = read_recipe(options.recipe or RECIPE_FILE)
    device = resolve_device(options.device)
    if device.type != "cpu" and processes.count > 1:
        fail("--processes shares the work of a CPU; a GPU takes one")
    done = build_pocket(recipe, options.work, options.out, until, options.last, str(device), processes, options.start)
    if processes.is_main:
        print("every stage is complete" if done else "not complete yet: run the same command again to continue")


@dataclass(frozen=True)
class MeasureOptions:
    """Generate the pocket suite with a model and judge it by the oracle; write a table and contact sheets."""

    model: Path = Path("ckpt/pocket")
    out: Path = Path("outputs/pocket")
    """Folder for the table and the contact sheets."""
    prompts: int = 200
    """Prompts per category."""
    per_prompt: int = 1
    """Pictures per prompt."""
    seed: int = 0
    num_timesteps: int = 25
    guidance_scale: float | None = None
    """By default the model's own: its generation_defaults.json, or 7.5."""
    scheduler: str = "ddim"


def measure(options: MeasureOptions) -> None:
    for name in ("prompts", "per_prompt", "num_timesteps"):
        if getattr(options, name) < 1:
            fail(f"--{name} must be at least 1, not {getattr(options, name)}")
    from dpt.backbone import open_backbone
    from dpt.pocket.measure import measure as measure_pocket
    from dpt.sampling.draw import SamplingSettings

    defaults = generation_defaults(options.model)
    scale = defaults.guidance_scale if options.guidance_scale is None else options.guidance_scale
    settings = SamplingSettings(options.num_timesteps, scale, options.scheduler)
    if options.guidance_scale is None and (line := defaults.describe(["guidance_scale"])):
        print(line)
    backbone = open_backbone(options.model)
    print(measure_pocket(backbone, options.out, options.prompts, options.seed, settings, options.per_prompt))
