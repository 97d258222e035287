"""The model of a sampling command, with a checkpoint's adapter and LoRA; or a method of the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.adapter import Adapter, AdapterConfig
from dpt.adapter.io import FILE_NAME, config_at, config_of, read_published
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.device import apply_speedups
from dpt.backbone.opening import open_refiner
from dpt.backbone.sdxl import SDXLRefiner
from dpt.checkpoints import Checkpoint, open_checkpoint
from dpt.cli.common.console import new_run_folder, versions, warn
from dpt.cli.txt2img.options import NONE, Options, ShapeOptions
from dpt.errors import UserError, fail
from dpt.files import sha256
from dpt.generation_defaults import GenerationDefaults, generation_defaults
from dpt.lora import Lora
from dpt.methods.base import GenerationConfig
from dpt.methods.registry import parse_methods
from dpt.records import to_flat
from dpt.sampling.draw import check_strength
from dpt.sampling.options import Correction

if TYPE_CHECKING:
    from dpt.distributed import Processes


@dataclass
class TunedModel:
    """A backbone and, where the checkpoint has them, an adapter and a LoRA."""

    backbone: Backbone
    checkpoint: Checkpoint | None = None
    lora: Lora | None = None
    """The LoRA, if it is attached and not merged."""
    refiner: SDXLRefiner | None = None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    speedups: Sequence[str] = ()
    """One sentence for each speed-up that was applied."""

    @property
    def adapter(self) -> Adapter | None:
        return self.checkpoint.adapter if self.checkpoint else None

    @property
    def has_lora(self) -> bool:
        return self.checkpoint is not None and self.checkpoint.lora is not None

    @contextmanager
    def with_lora(self, on: bool) -> Iterator[None]:
        """Inside the block the LoRA is on or off."""
        with nullcontext() if on or self.lora is None else self.lora.disabled():
            yield

    def record(self) -> dict[str, Any] | None:
        """The checkpoint, as the manifest records it."""
        if self.checkpoint is None:
            return None
        parts = {"adapter": self.checkpoint.adapter, "lora": self.checkpoint.lora}
        return {
            "path": str(self.checkpoint.path),
            "format": self.checkpoint.kind,
            "parts": [name for name, part in parts.items() if part is not None],
            "sha256": {file.name: sha256(file) for file in self.checkpoint.files},
        }


def open_tuned_model(options: Options, model: str, device: str, default_ckpt: Path | None) -> TunedModel:
    backbone = open_backbone(
        model,
        revision=options.model.revision,
        device=device,
        dtype=options.model.dtype,
        vae=options.model.vae,
        quantize=options.model.quantize,
    )
    path = (
        default_ckpt if options.model.ckpt is None else None if options.model.ckpt == NONE else Path(options.model.ckpt)
    )
    if path is None:
        if options.shape.given:
            fail(f"--{next(iter(options.shape.given))} describes an adapter, and there is none: give --ckpt")
        tuned = TunedModel(backbone)
    else:
        checkpoint = open_checkpoint_with_shape(path, options.shape)
        lora = checkpoint.attach(backbone, options.model.allow_other_base)
        if lora is not None and not options.compare and options.model.quantize is None:
            lora.merge()  # merged weights are faster, and only --compare switches the LoRA off
            lora = None
        tuned = TunedModel(backbone, checkpoint, lora)
    if options.refiner.refiner is not None:
        check_strength(options.refiner.refiner_strength, options.sampler.num_timesteps)
        tuned.refiner = open_refiner(options.refiner.refiner, backbone)
    tuned.defaults = generation_defaults(backbone.folder.path, path)
    tuned.speedups = apply_speedups(
        backbone,
        compiled=options.model.compile,
        channels_last=options.model.channels_last,
        tf32=options.model.allow_tf32,
    )
    return tuned


def open_checkpoint_with_shape(path: Path, shape: ShapeOptions) -> Checkpoint:
    """Open the checkpoint at `path`. Shape flags complete what a published file does not record, and must match."""
    given, config = shape.given, None
    if given and _is_published(path):
        unrecorded = ("unet_feature", "num_queries_matching", "nheads")
        tensors = read_published(path).adapter
        config = config_of(tensors, str(path), **{name: given[name] for name in unrecorded if name in given})
    checkpoint = open_checkpoint(path, config)
    if given and checkpoint.adapter is None:
        fail(f"--{next(iter(given))} describes an adapter, and {path} has none")
    if checkpoint.adapter is not None:
        _check_shape_flags(given, checkpoint.adapter.config, path)
    return checkpoint


def check_parts(options: Options, tuned: TunedModel, correction: Correction) -> None:
    """Refuse flags that need an adapter or a LoRA which the checkpoint lacks."""
    if tuned.adapter is None:
        reason = f"and {tuned.checkpoint.path} has none" if tuned.checkpoint else "and there is none: give --ckpt"
        if options.correction.correction_factor:
            fail(f"--correction_factor needs an adapter, {reason}")
        if options.n_candidates is not None:
            fail(f"--n_candidates needs an adapter for the matching score, {reason}")
    if options.compare and not (correction.on or tuned.has_lora):
        fail("--compare has nothing to compare: there is no LoRA, and no correction is on")


def _check_shape_flags(given: dict[str, Any], config: AdapterConfig, path: Path) -> None:
    try:
        differing = [name for name in given if replace(config, **{name: given[name]}) != config]
    except UserError as error:
        raise UserError(f"the shape flags do not fit the adapter of {path}: {error}") from None
    if differing:
        name = differing[0]
        flag = "no_contrastive_align_loss" if name == "contrastive_align_loss" else name
        fail(f"--{flag} does not match the adapter of {path}: its {name} is {getattr(config, name)!r}")


def _is_published(path: Path) -> bool:
    if path.is_dir():
        return config_at(path) is None and (path / FILE_NAME).is_file()
    return path.is_file() and path.suffix != ".safetensors"


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
    from dpt.cli.txt2img.sampling import SHEET, ImageRecord, write_sheet
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
