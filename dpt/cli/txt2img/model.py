"""The model of a drawing command, with what was trained on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpt.adapter import Adapter, AdapterConfig
from dpt.adapter.io.native import config_at
from dpt.adapter.io.published import FILE_NAME, config_of, read_published
from dpt.backbone import Backbone, open_backbone
from dpt.backbone.speedups import apply_speedups
from dpt.checkpoints import Checkpoint, open_checkpoint
from dpt.cli.txt2img.options import NONE, Options, ShapeOptions
from dpt.errors import UserError, fail
from dpt.files import sha256
from dpt.lora import Lora


@dataclass
class TunedModel:
    """A model, and as far as they are there an adapter that reads it and a LoRA in it."""

    backbone: Backbone
    checkpoint: Checkpoint | None = None
    lora: Lora | None = None
    """One that can still be switched off."""
    sped: Sequence[str] = ()
    """What was changed to draw faster, a sentence each."""

    @property
    def adapter(self) -> Adapter | None:
        return self.checkpoint.adapter if self.checkpoint else None

    @property
    def has_lora(self) -> bool:
        return self.checkpoint is not None and self.checkpoint.lora is not None

    @contextmanager
    def tuned(self, wanted: bool) -> Iterator[None]:
        """Inside, the model is as its LoRA makes it, or as it was without."""
        with nullcontext() if wanted or self.lora is None else self.lora.without():
            yield

    def described(self) -> dict[str, Any] | None:
        """What was opened, for the record."""
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
    backbone = open_backbone(model, revision=options.revision, device=device, dtype=options.dtype)
    path = default_ckpt if options.ckpt is None else None if options.ckpt == NONE else Path(options.ckpt)
    if path is None:
        if options.shape.told:
            fail(f"--{next(iter(options.shape.told))} tells what an adapter is like, and there is none: say --ckpt")
        trained = TunedModel(backbone)
    else:
        checkpoint = open_checkpoint_with_shape(path, options.shape)
        lora = checkpoint.attach(backbone)
        if lora is not None and not options.compare:
            lora.merge()  # faster, and nobody will want to draw without it
            lora = None
        trained = TunedModel(backbone, checkpoint, lora)
    check_parts(options, trained)
    trained.sped = apply_speedups(
        backbone, compiled=options.compile, channels_last=options.channels_last, tf32=options.allow_tf32
    )
    return trained


def open_checkpoint_with_shape(path: Path, shape: ShapeOptions) -> Checkpoint:
    """The checkpoint at `path`; what was said of its adapter's shape helps to read it, and must be true."""
    told, config = shape.told, None
    if told and _is_published(path):
        said = ("unet_feature", "num_queries_matching", "nheads")
        tensors = read_published(path).adapter
        config = config_of(tensors, str(path), **{name: told[name] for name in said if name in told})
    checkpoint = open_checkpoint(path, config)
    if told and checkpoint.adapter is None:
        fail(f"--{next(iter(told))} tells what an adapter is like, and {path} has none")
    if checkpoint.adapter is not None:
        _check_shape_flags(told, checkpoint.adapter.config, path)
    return checkpoint


def check_parts(options: Options, trained: TunedModel) -> None:
    """Whether what was asked for can be had of what is there."""
    corrects = bool(options.correction.correction_factor)
    if trained.adapter is None:
        reason = f"and {trained.checkpoint.path} has none" if trained.checkpoint else "and there is none: say --ckpt"
        if corrects:
            fail(f"--correction_factor needs an adapter, {reason}")
        if options.n_candidates is not None:
            fail(f"--n_candidates needs an adapter to choose, {reason}")
    corrects = options.correction.correction(options.num_timesteps, trained.adapter is not None).on
    if options.compare and not (corrects or trained.has_lora):
        fail("--compare has nothing to compare: there is no LoRA, and nothing is corrected")


def _check_shape_flags(told: dict[str, Any], config: AdapterConfig, path: Path) -> None:
    try:
        differing = [name for name in told if replace(config, **{name: told[name]}) != config]
    except UserError as error:
        raise UserError(f"the adapter of {path} cannot be of the shape that was said: {error}") from None
    if differing:
        name = differing[0]
        flag = "no_contrastive_align_loss" if name == "contrastive_align_loss" else name
        fail(f"the adapter of {path} is not of the shape that --{flag} says: its {name} is {getattr(config, name)!r}")


def _is_published(path: Path) -> bool:
    if path.is_dir():
        return config_at(path) is None and (path / FILE_NAME).is_file()
    return path.is_file() and path.suffix != ".safetensors"
