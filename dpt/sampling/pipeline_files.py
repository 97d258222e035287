"""Opening and saving a `DPTPipeline`: the folder of a stock pipeline, with an adapter and generation defaults in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline

from dpt.adapter import Adapter
from dpt.adapter import io as adapter_store
from dpt.backbone import Backbone, identity, open_backbone
from dpt.backbone.folder import ModelFolder
from dpt.backbone.opening import model_folder
from dpt.checkpoints import open_checkpoint
from dpt.embedded import embedded_path, model_location
from dpt.errors import UserError
from dpt.files import atomic_file
from dpt.generation_defaults import GenerationDefaults, generation_defaults, write_defaults
from dpt.records import to_plain
from dpt.sampling.schedulers import MODELS_OWN, make_scheduler
from dpt.untrusted import read_json_object

ADAPTER = "adapter"
"""The sub-folder of the adapter."""

SECOND_TEXT_ENCODER = "text_encoder_2"

CUSTOM_PIPELINE = "pipeline.py"

CUSTOM_PIPELINE_CODE = '''"""What `custom_pipeline=` of diffusers opens this folder with."""

from dpt.sampling.pipeline_families import {0}

__all__ = ["{0}"]
'''

HUB_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")


class PipelineFiles(DiffusionPipeline):
    """A stock pipeline that also has an adapter, generation defaults, and its components as a `Backbone`."""

    _adapter: Adapter | None = None
    _defaults: GenerationDefaults | None = None
    _opened: tuple[tuple[int, ...], Backbone] | None = None
    """The backbone, and the components that it was made of."""

    # What a family defines

    @classmethod
    def parts_of(cls, backbone: Any) -> dict[str, Any]:
        """The arguments of the stock pipeline's constructor, without the scheduler."""
        raise NotImplementedError

    def make_backbone(self, scheduler_config: dict[str, Any], folder: ModelFolder) -> Backbone:
        """The components as a backbone."""
        raise NotImplementedError

    @classmethod
    def stock_name(cls) -> str:
        """The stock pipeline's class name."""
        raise NotImplementedError

    # Opening

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        checkpoint: str | Path | None = None,
        scheduler: Any = MODELS_OWN,
        revision: str | None = None,
        device: str | torch.device | None = None,
        torch_dtype: str | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
        allow_other_base: bool = False,
        **kwargs: Any,
    ) -> Self:
        """A model in the diffusers layout, and a checkpoint of any format that `open_checkpoint` reads.

        The scheduler is an object or one of dpt's names. With other arguments of `DiffusionPipeline.from_pretrained`
        (a component, `variant`, `device_map`, ...) diffusers loads the components, from safetensors only.
        """
        model = model_location(str(pretrained_model_name_or_path))
        precision = torch_dtype if dtype is None else dtype
        if kwargs:
            pipeline = cls._load_with_diffusers(str(model), revision, precision, kwargs)
            if scheduler != MODELS_OWN:
                pipeline.scheduler = _scheduler(scheduler, pipeline.backbone)
            if device is not None:
                pipeline.to(device)
        else:
            backbone = open_backbone(model, revision=revision, device=device, dtype=precision)
            pipeline = cls.from_backbone(backbone, scheduler=scheduler)
            pipeline.register_to_config(_name_or_path=str(model))
        if checkpoint is not None:
            pipeline.load_checkpoint(checkpoint, allow_other_base)
        return pipeline

    @classmethod
    def _load_with_diffusers(cls, model: str, revision: str | None, dtype: Any, kwargs: dict[str, Any]) -> Self:
        where = {name: kwargs[name] for name in ("cache_dir", "token", "local_files_only") if name in kwargs}
        index = cls.load_config(model, revision=revision, **where)
        network = (index.get("transformer") or index.get("unet") or ["", "model without a network"])[1]
        kind = cls._kind(str(network), (index.get(SECOND_TEXT_ENCODER) or [None])[0] is not None)
        options = {"use_safetensors": True, "revision": revision, "dtype": dtype or torch.float32, **kwargs}
        if not options["use_safetensors"]:
            raise UserError("use_safetensors=False: dpt opens safetensors files only")
        if "requires_safety_checker" in kind._get_signature_keys(kind)[1]:
            options.setdefault("requires_safety_checker", False)
        return DiffusionPipeline.from_pretrained.__func__(kind, model, **options)

    @classmethod
    def from_backbone(
        cls,
        backbone: Backbone,
        adapter: Adapter | None = None,
        scheduler: Any = MODELS_OWN,
        defaults: GenerationDefaults | None = None,
    ) -> Self:
        """The pipeline around an open model. `defaults` are the model's own if not given."""
        kind = cls._kind(type(backbone.network).__name__, SECOND_TEXT_ENCODER in backbone.text_networks())
        pipeline = kind(**kind.parts_of(backbone), scheduler=_scheduler(scheduler, backbone))
        pipeline._opened = (pipeline._identities(), backbone)
        pipeline._read_folder(backbone.folder)
        pipeline.adapter = adapter or pipeline.adapter
        pipeline.defaults = defaults or pipeline.defaults
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """This pipeline with the components of another; `checkpoint` and `allow_other_base` as in from_pretrained."""
        checkpoint, allowed = kwargs.pop("checkpoint", None), kwargs.pop("allow_other_base", False)
        parts = pipeline.components
        kind = cls._kind(type(_network(parts)).__name__, parts.get(SECOND_TEXT_ENCODER) is not None)
        made = DiffusionPipeline.from_pipe.__func__(kind, pipeline, **kwargs)
        if isinstance(pipeline, PipelineFiles):
            _ = pipeline.backbone
            made._opened, made.adapter, made.defaults = pipeline._opened, pipeline.adapter, pipeline.defaults
        if checkpoint is not None:
            made.load_checkpoint(checkpoint, allowed)
        return made

    @classmethod
    def _kind(cls, network_class: str, has_second: bool) -> type[Self]:
        """The class for a pipeline with this denoising network, and with a second text encoder or without: this one,
        if it is a family's."""
        from dpt.sampling.pipeline_families import family_of

        kind = family_of(network_class, has_second)
        if issubclass(kind, cls):
            return kind
        if issubclass(cls, kind):
            return cls
        raise UserError(f"this model is a {kind.stock_name()}: open it with DPTPipeline, not {cls.__name__}")

    def load_checkpoint(self, checkpoint: str | Path, allow_other_base: bool = False) -> None:
        """Use a checkpoint's adapter and generation defaults, and add its LoRA to the weights."""
        opened = open_checkpoint(embedded_path(checkpoint))
        if lora := opened.attach(self.backbone, allow_other_base):
            lora.merge()
        self.adapter = opened.adapter or self.adapter
        self.defaults = generation_defaults(self.backbone.folder.path, opened.path)

    @property
    def backbone(self) -> Backbone:
        """The components as dpt's other functions take them."""
        current = self._identities()
        if self._opened is None:
            folder = _folder_of(self.components)
            self._opened = current, self.make_backbone(dict(self.scheduler.config), folder)
            self._read_folder(folder)
        elif self._opened[0] != current:
            before = self._opened[1]
            self._opened = current, self.make_backbone(before.scheduler_config, before.folder)
        return self._opened[1]

    @property
    def adapter(self) -> Adapter | None:
        """What self-correction reads the matching score from."""
        _ = self.backbone
        return self._adapter

    @adapter.setter
    def adapter(self, adapter: Adapter | None) -> None:
        self._adapter = adapter

    @property
    def defaults(self) -> GenerationDefaults:
        """Guidance scale, negative prompt and correction of calls that do not give them."""
        _ = self.backbone
        assert self._defaults is not None
        return self._defaults

    @defaults.setter
    def defaults(self, defaults: GenerationDefaults) -> None:
        self._defaults = defaults

    def _identities(self) -> tuple[int, ...]:
        return tuple(id(part) for name, part in sorted(self.components.items()) if name != "scheduler")

    def _read_folder(self, folder: ModelFolder) -> None:
        """The adapter and the generation defaults that a saved pipeline holds."""
        self._defaults = self._defaults or generation_defaults(folder.path)
        if self._adapter is None and (folder.path / ADAPTER / adapter_store.RECORD).is_file():
            opened = open_checkpoint(folder.path / ADAPTER)
            assert self._opened is not None
            opened.check_belongs(self._opened[1])
            self._adapter = opened.adapter

    # Saving

    def save_pretrained(self, save_directory: str | Path, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save a folder that the stock pipeline opens too, with the adapter and the generation defaults in it."""
        folder, backbone = Path(save_directory), self.backbone
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        super().save_pretrained(str(folder), *args, **kwargs)
        _name_stock_class(folder / self.config_name, self.stock_name())
        (folder / CUSTOM_PIPELINE).write_text(CUSTOM_PIPELINE_CODE.format(type(self).__name__), encoding="utf-8")
        if (folder / ADAPTER / adapter_store.RECORD).is_file():
            shutil.rmtree(folder / ADAPTER)
        if self.adapter is not None:
            origin = {"prediction_type": backbone.noise.prediction_type, "base": folder.name}
            origin["base_hash"] = identity.model_hash(model_folder(folder))
            adapter_store.save_adapter(self.adapter, folder / ADAPTER, **origin)
        stored = to_plain(self.defaults)
        if entries := {name: stored[name] for name in self.defaults.sources}:
            write_defaults(folder, entries)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": folder.name, **hub})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers, but the VAE keeps its number format: half precision overflows in some and is too coarse."""
        vae = self.vae
        self.__dict__["vae"] = None
        try:
            super().to(*args, **kwargs)
        finally:
            self.__dict__["vae"] = vae
        target = kwargs.get("device", args[0] if args and not isinstance(args[0], torch.dtype) else None)
        if target is not None:
            vae.to(target)
        return self


def _scheduler(scheduler: Any, backbone: Backbone) -> Any:
    return make_scheduler(scheduler, backbone.scheduler_config) if isinstance(scheduler, str) else scheduler


def _network(components: dict[str, Any]) -> Any:
    return components.get("unet") or components.get("transformer")


def _folder_of(components: dict[str, Any]) -> ModelFolder:
    """The folder that the denoising network was loaded from; one without components if that is not known."""
    recorded = getattr(_network(components).config, "_name_or_path", None)
    path = Path(recorded).parent if recorded else None
    if path is not None and (path / DiffusionPipeline.config_name).is_file():
        return model_folder(path)
    return ModelFolder(Path("a model without a folder"), ())


def _name_stock_class(file: Path, name: str) -> None:
    index = {**read_json_object(file), "_class_name": name}
    with atomic_file(file) as work:
        work.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
