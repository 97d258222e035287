"""`txt2img.py`: pictures for a prompt, with a contact sheet and a manifest of how they were made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.cli.console import plain_warnings, warn
from dpt.cli.run_folder import new_run_folder
from dpt.errors import UserError, run_command
from dpt.sampling.schedulers import SCHEDULER_NAMES, check_name

if TYPE_CHECKING:
    from PIL import Image

    from dpt.backbone import Backbone
    from dpt.sampling.draw import Settings

EMBEDDED = "ckpt/pocket"
CHECKOUT = Path(__file__).resolve().parents[2]
GPU_BATCH = 4
SCHEDULER_HELP = f"One of {', '.join(SCHEDULER_NAMES)}; own is what the model's folder says."


@dataclass(frozen=True)
class Options:
    """Draw pictures for a prompt."""

    prompt: str = "a red circle to the left of a blue square"
    """What to draw."""
    n_samples: int = 3
    """How many pictures."""
    seed: int = 42
    """Picture k depends on the model, the prompt, the seed, k and the settings, and on nothing else."""
    negative_prompt: str = ""
    """What to steer away from."""
    num_timesteps: int = 25
    """Denoising steps. 25 is what the embedded model is evaluated with; the published script takes 50."""
    guidance_scale: float = 7.5
    """Strength of classifier-free guidance; 1 is none, and twice as fast."""
    scheduler: Annotated[str, tyro.conf.arg(metavar="NAME", help=SCHEDULER_HELP)] = "ddim"
    height: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """By default the size the model was trained at."""
    width: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """By default the size the model was trained at."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Pictures drawn together on a GPU (4 by default). On a CPU they are always drawn one by one."""
    outdir: Path = Path("outputs")
    """Each run makes a new folder in here."""
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    """A Stable Diffusion model in the diffusers layout. A folder is used without touching the network."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Version of a hub model."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format on a GPU, by default a half format; a CPU always uses float32."""
    gpu: Annotated[str | None, tyro.conf.arg(aliases=["-g", "--gpuid"], metavar="N|cpu")] = None
    """Number of the GPU, or cpu. By default the first GPU, or the CPU where there is none."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, prog="txt2img.py", args=arguments, use_underscores=True)

    def command() -> None:
        with plain_warnings():
            run(options)

    return run_command(command)


def run(options: Options) -> Path:
    """Draw, write, and return the folder of the run."""
    check(options)
    # Everything above this line answers at once; from here on, the libraries are loaded.
    from tqdm import tqdm

    from dpt.backbone import Backbone
    from dpt.sampling.draw import Request, Settings, calls_per_picture, draw
    from dpt.sampling.pictures import to_picture

    settings = Settings(
        steps=options.num_timesteps,
        guidance_scale=options.guidance_scale,
        scheduler=options.scheduler,
        height=options.height,
        width=options.width,
    )
    device = choose_device(options.gpu)
    backbone = Backbone.open(
        model_location(options.pretrained_model_name_or_path),
        revision=options.revision,
        device=device,
        dtype=options.dtype,
    )
    prompts = dict.fromkeys([options.prompt, options.negative_prompt])
    losses = [sentence for prompt in prompts for sentence in backbone.prompt_warnings(prompt)]
    for sentence in losses:
        warn(sentence)
    on_cpu = backbone.device.type == "cpu"
    if on_cpu and (options.batch_size or 1) > 1:
        warn("--batch_size has no effect on a CPU, where pictures are drawn one by one")
    batch_size = 1 if on_cpu else options.batch_size or GPU_BATCH
    requests = [
        Request(options.prompt, options.seed, index, options.negative_prompt)
        for index in range(options.n_samples)
    ]
    calls = calls_per_picture(backbone, settings) * len(requests)
    record = manifest(options, settings, backbone, batch_size, losses)
    with new_run_folder(options.outdir, options.prompt) as folder:
        with tqdm(total=calls, desc="drawing", unit="step") as bar:
            images = draw(backbone, requests, settings, batch_size=batch_size, on_step=bar.update)
            pictures = [to_picture(image) for image in images]
        write(folder.work, pictures, record)
    assert folder.final is not None
    where = "the CPU" if on_cpu else f"GPU {backbone.device.index}"
    print(f"{_count(len(pictures), 'picture')} drawn on {where}: see contact_sheet.png in {folder.final}")
    return folder.final


def check(options: Options) -> None:
    """What can be found wrong without loading anything."""
    if not options.prompt.strip():
        raise UserError("the prompt is empty")
    if options.n_samples < 1:
        raise UserError(f"--n_samples must be at least 1, not {options.n_samples}")
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {options.batch_size}")
    check_name(options.scheduler)


def choose_device(gpu: str | None) -> str:
    """The device for --gpu. Only the default falls back to the CPU; a choice is taken at its word."""
    import torch

    if gpu == "cpu":
        return "cpu"
    if gpu is None:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if not gpu.isdecimal():
        raise UserError(f"--gpu takes the number of one GPU or cpu, not {gpu!r}")
    return f"cuda:{gpu}"


def model_location(name: str) -> str:
    """Where the model is: the embedded one is part of this checkout, wherever the command was started."""
    if name != EMBEDDED:
        return name
    embedded = CHECKOUT / EMBEDDED
    if not embedded.is_dir():
        raise UserError(f"the embedded model is missing: there is no folder {EMBEDDED} in {CHECKOUT}")
    return str(embedded)


def manifest(
    options: Options, settings: Settings, backbone: Backbone, batch_size: int, losses: list[str]
) -> dict[str, Any]:
    """All that is needed to draw these pictures again."""
    from dpt.backbone.randomness import derived_seed
    from dpt.cli.versions import versions
    from dpt.sampling.draw import INITIAL_NOISE

    factor = backbone.downscale_factor
    height, width = (side * factor for side in backbone.latent_size(options.height, options.width))
    return {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "seed": options.seed,
        "images": [
            {
                "file": picture_name(index),
                "index": index,
                "noise_seed": derived_seed(options.seed, index, INITIAL_NOISE),
            }
            for index in range(options.n_samples)
        ],
        "settings": {**asdict(settings), "height": height, "width": width},
        "model": {
            "name": options.pretrained_model_name_or_path,
            "revision": options.revision,
            "sha256": backbone.model_hash,
            "prediction_type": backbone.prediction_type,
        },
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "warnings": losses,
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write(folder: Path, pictures: Sequence[Image.Image], record: dict[str, Any]) -> None:
    from dpt.evaluation.contact_sheet import contact_sheet

    for index, picture in enumerate(pictures):
        picture.save(folder / picture_name(index))
    captions = [f"{index}" for index in range(len(pictures))]
    contact_sheet(pictures, captions, title=record["prompt"]).save(folder / "contact_sheet.png")
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / "manifest.json").write_text(f"{text}\n", encoding="utf-8")


def picture_name(index: int) -> str:
    return f"{index:03d}.png"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
