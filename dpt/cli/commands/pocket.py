"""`dpt pocket`: train the embedded models, sample and judge them, and diagnose their text conditioning."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from dpt.errors import fail
from dpt.generation_defaults import generation_defaults
from dpt.sampling.options import SamplerConfig

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
    """A recipe file. Default: the recipe that trains the model from scratch. A recipe with a `transformer` trains an
    SD3 model."""
    start: Path | None = None
    """A finished model whose denoiser to train further; its CLIP and VAE stay as they are. A transformer recipe needs
    it, for the VAE and the initial text encoder."""
    minutes: float | None = None
    """Stop after this many minutes; the same command continues."""
    last: str | None = None
    """The last stage to train: clip, vae or unet; text or mmdit with a transformer recipe. Default: all."""
    compile: bool = False
    """Compile the transformer's blocks; needs a C++ compiler on a CPU."""
    device: str | None = None
    """cpu or cuda. A CPU takes hours for what takes a GPU minutes. Default: cuda if there is a GPU."""
    processes: int = 1
    """Processes that share each batch of the denoiser. One per core is faster than one with many threads."""
    threads: int | None = None
    """CPU threads of each process; default: one when there are several processes, else what torch chooses."""


def build(options: BuildOptions) -> None:
    from dpt.distributed import launch
    from dpt.pocket.build import STAGES
    from dpt.pocket.mmdit import MMDIT_STAGES, is_mmdit_recipe

    is_mmdit = is_mmdit_recipe(options.recipe)
    stages = MMDIT_STAGES if is_mmdit else STAGES
    if options.last is not None and options.last not in stages:
        fail(f"there is no stage {options.last!r}; the stages are {', '.join(stages)}")
    if is_mmdit:
        _check_mmdit(options)
    elif options.compile:
        fail("--compile is for transformer recipes: leave it out")
    elif options.start is not None and options.last not in (None, "unet"):
        fail("--start keeps CLIP and VAE as they are and trains the unet alone: leave --last out")
    if options.processes < 1:
        fail(f"--processes must be at least 1, not {options.processes}")
    until = None if options.minutes is None else time.time() + 60 * options.minutes
    launch(options.processes, partial(_build, options, until))


def _check_mmdit(options: BuildOptions) -> None:
    if options.start is None:
        fail("a transformer recipe needs --start: the folder of a pocket whose VAE and text encoder to begin with")
    if options.start.resolve() == options.out.resolve():
        fail(f"--out {options.out} would replace the model of --start: choose another folder")


def _build(options: BuildOptions, until: float | None, processes: Processes) -> None:
    import torch

    from dpt.backbone.device import resolve_device
    from dpt.pocket.build import build as build_pocket
    from dpt.pocket.mmdit import build_mmdit, is_mmdit_recipe, read_mmdit_recipe
    from dpt.pocket.training import RECIPE_FILE, read_recipe

    threads = options.threads or (1 if processes.count > 1 else None)
    if threads:
        torch.set_num_threads(threads)
    device = resolve_device(options.device)
    if device.type != "cpu" and processes.count > 1:
        fail("--processes shares the work of a CPU; a GPU takes one")
    work, out, start = options.work, options.out, options.start
    if options.recipe and start and is_mmdit_recipe(options.recipe):
        transformer_recipe = read_mmdit_recipe(options.recipe)
        last = options.last or "mmdit"
        done = build_mmdit(transformer_recipe, start, work, out, until, last, str(device), processes, options.compile)
    else:
        recipe = read_recipe(options.recipe or RECIPE_FILE)
        done = build_pocket(recipe, work, out, until, options.last or "unet", str(device), processes, start)
    if processes.is_main:
        print("every stage is complete" if done else "not complete yet: run the same command again to continue")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class MeasureOptions:
    """Sample the pocket suite with a model, judge the images with the oracle, and write a table and contact sheets."""

    model: Path = Path("ckpt/pocket")
    out: Path = Path("outputs/pocket")
    """Folder for the table and the contact sheets."""
    prompts: int = 200
    """Prompts per category."""
    per_prompt: int = 1
    """Images per prompt."""
    seed: int = 0
    sampler: SamplerConfig = field(default_factory=SamplerConfig)


def measure(options: MeasureOptions) -> None:
    sampler = options.sampler
    limited = {"prompts": options.prompts, "per_prompt": options.per_prompt, "num_timesteps": sampler.num_timesteps}
    for name, value in limited.items():
        if value < 1:
            fail(f"--{name} must be at least 1, not {value}")
    from dpt.backbone import open_backbone
    from dpt.pocket.measure import measure as measure_pocket
    from dpt.sampling.draw import SamplingSettings

    defaults = generation_defaults(options.model)
    scale = defaults.guidance_scale if sampler.guidance_scale is None else sampler.guidance_scale
    settings = SamplingSettings(sampler.num_timesteps, scale, sampler.scheduler)
    for line in defaults.describe(["guidance_scale"] if sampler.guidance_scale is None else []):
        print(line)
    backbone = open_backbone(options.model)
    print(measure_pocket(backbone, options.out, options.prompts, options.seed, settings, options.per_prompt))


@dataclass(frozen=True)
class DiagnoseOptions:
    """Measure which words and facts a model's text encoder keeps, and whether the layout follows the prompt."""

    model: Path = Path("ckpt/pocket")
    """The folder of a pocket with a UNet or with an SD3 transformer."""
    out: Path | None = None
    """A JSON file for the results."""
    captions: int = 3000
    """Captions that fit the linear probes."""
    pairs: int = 60
    """Pairs of captions per word class."""
    noises: int = 4
    """Images per prompt, each from its own noise, for the layout."""


def diagnose(options: DiagnoseOptions) -> None:
    for name in ("captions", "pairs", "noises"):
        if getattr(options, name) < 1:
            fail(f"--{name} must be at least 1, not {getattr(options, name)}")
    import json
    from dataclasses import asdict

    from dpt.pocket.diagnose import diagnose as diagnose_model

    result = asdict(diagnose_model(options.model, options.captions, options.pairs, options.noises))
    for instrument, rows in result.items():
        print(instrument)
        for name, values in rows.items():
            numbers = (
                values.items() if isinstance(values, dict) else zip(result["layout"]["levels"], values, strict=True)
            )
            print(f"  {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in numbers))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"model": str(options.model), **result}, indent=1) + "\n")
