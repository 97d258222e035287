"""`txt2img.py --method`: images by a method of the registry, such as sld, instead of flag by flag."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dpt.cli.common.console import versions, warn
from dpt.cli.common.run_folder import new_run_folder
from dpt.cli.txt2img.options import Options
from dpt.errors import fail
from dpt.methods.base import GenerationConfig
from dpt.methods.registry import parse_methods
from dpt.records import to_flat

if TYPE_CHECKING:
    from dpt.distributed import Processes

COMPATIBLE = {
    "prompt", "prompts_file", "n_samples", "num_timesteps", "guidance_scale", "negative_prompt", "seed", "outdir",
    "pretrained_model_name_or_path", "allow_other_base", "gpu", "dtype", "scheduler", "method",
}  # fmt: skip
"""Flags that every method takes; a method sets the others itself."""

PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}


def check_method(options: Options) -> None:
    """Refuse flags that the method sets itself."""
    defaults = to_flat(Options())
    given = [name for name, value in to_flat(options).items() if name not in COMPATIBLE and value != defaults[name]]
    if given:
        fail(f"--{given[0]} and --method cannot be combined: the method sets it itself")
    if options.model.gpu not in (None, "cpu"):
        fail("--gpu and --method cannot be combined: set CUDA_VISIBLE_DEVICES")


def run_method(options: Options, prompts: Sequence[str], group: Processes) -> None:
    """Sample the prompts by the method and write images, contact sheet and manifest.json."""
    assert options.method is not None
    model = options.model
    (config,) = parse_methods([options.method], options.sampler.num_timesteps, model.pretrained_model_name_or_path)
    if group.count > 1:
        fail("--method samples in one process: start it without a launcher")
    from dpt.cli.txt2img.output import SHEET, write_sheet
    from dpt.cli.txt2img.sampling import ImageRecord
    from dpt.sampling.draw import Request

    precision: Any = PRECISIONS.get(model.dtype or "")
    generation = GenerationConfig(
        model.pretrained_model_name_or_path, options.sampler, precision, model.allow_other_base
    ).with_defaults()
    method = config.open(generation)
    negative = options.guidance.negative_prompt or ""
    name = options.prompt if options.prompts_file is None else options.prompts_file.stem
    records: list[ImageRecord] = []
    with new_run_folder(options.outdir, name) as folder:
        for number, prompt in enumerate(prompts):
            requests = [Request(prompt, options.seed, index, negative) for index in range(options.n_samples)]
            for request, image in zip(requests, method.make(requests), strict=True):
                place = f"{request.index:03d}.png"
                file = place if options.prompts_file is None else f"{number:04d}-{place}"
                image.save(folder.work / file)
                records.append(ImageRecord(file, number, request.index, config.name))
        write_sheet(folder.work, SHEET, records, 1, prompts)
        record = {
            "prompts": list(prompts),
            "negative_prompt": negative,
            "seed": options.seed,
            "method": {"name": options.method, **dict(method.identity)},
            "settings": {
                "steps": options.sampler.num_timesteps,
                "guidance_scale": generation.guidance_scale,
                "scheduler": options.sampler.scheduler,
            },
            "images": [{"file": r.file, "prompt": r.prompt, "index": r.index} for r in records],
            "versions": versions(),
        }
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (folder.work / "manifest.json").write_bytes(f"{text}\n".encode("utf-8", "backslashreplace"))
    if options.model.gpu == "cpu":
        warn("--gpu cpu has no effect with --method: it runs on the CPU only where there is no GPU")
    print(f"{len(records)} image{'' if len(records) == 1 else 's'} by {config.name}: see {SHEET} in {folder.final}")
