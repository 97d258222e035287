"""Full fine-tuning: train the whole denoising network with the denoising loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from dpt.backbone import Backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.example import CAPTION_ONLY, Batch, ExampleParts
from dpt.errors import UserError
from dpt.files import atomic_folder
from dpt.generation_defaults import FILE_NAME
from dpt.training.engine.task import Grouping, OnBatch, ParameterGroup, Tally, all_decay
from dpt.training.tasks.denoising import (
    DENOISED,
    MSE,
    DenoisingConfig,
    NoiseConfig,
    add_noise_to_batch,
    require_captions,
)
from dpt.training.tasks.memory import tuning_memory
from dpt.untrusted import read_json_object

MODEL_FOLDER = "model"

INDEX = "model_index.json"


class FullFineTuning:
    """Trains the network's own weights in float32. `compute_dtype` is the format of its matrix products."""

    folders = (MODEL_FOLDER,)
    num_validation_examples = 0

    def __init__(
        self,
        backbone: Backbone,
        denoising: DenoisingConfig | None = None,
        noise: NoiseConfig | None = None,
        gradient_checkpointing: bool = False,
        grouping: Grouping = all_decay,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        if backbone.dtype != torch.float32:
            raise UserError(f"all weights are trained in float32, and this model is in {backbone.dtype}")
        self.backbone, self.grouping, self.compute_dtype = backbone, grouping, compute_dtype
        self.trained = backbone.network.requires_grad_(True)
        self.denoising = denoising or DenoisingConfig()
        self.weights = {MSE: self.denoising.weight}
        self.noise = noise or NoiseConfig()
        self.noise.check(backbone)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            backbone.network.enable_gradient_checkpointing()

    @property
    def parts(self) -> ExampleParts:
        return CAPTION_ONLY

    @property
    def scales_loss(self) -> bool:
        return self.compute_dtype == torch.float16

    def parameter_groups(self) -> list[ParameterGroup]:
        return self.grouping(self.trained)

    def count(self, batch: Batch) -> int:
        return 0

    def losses(self, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        """L_mse of each image under its caption, with the same noise and timestep as a LoRA's training."""
        require_captions(batch)
        noised = add_noise_to_batch(self.backbone, batch, (DENOISED,), rng, self.noise)
        with self._autocast():
            output = self.backbone.predict(*noised.inputs((DENOISED,)))
        return {MSE: self.denoising.loss(self.backbone, output.float(), noised)}

    def _autocast(self) -> AbstractContextManager[object]:
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.backbone.device.type, self.compute_dtype)

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        return {}

    def memory(self, examples: int) -> Mapping[str, int]:
        return tuning_memory(self.backbone, None, None, examples, self.gradient_checkpointing)

    def export(self, root: Path, base: str = "") -> list[Path]:
        """A whole diffusers folder: the trained network beside copies of the other components."""
        source = self.backbone.folder
        with atomic_folder(root / MODEL_FOLDER) as work:
            network = _component_of(self.backbone)
            self.backbone.network.save_pretrained(work / network)
            others = [component for component in source.components if component.name != network]
            for component, file in ((part, file) for part in others for file in source.loaded_files(part)):
                target = work / component.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            if (source.path / FILE_NAME).is_file():
                shutil.copyfile(source.path / FILE_NAME, work / FILE_NAME)
            names = {component.name for component in source.components}
            index = read_json_object(source.path / INDEX)
            kept = {
                name: [None, None] if isinstance(entry, list) and name not in names else entry
                for name, entry in index.items()
            }
            (work / INDEX).write_text(json.dumps(kept, indent=2) + "\n")
        return [root / MODEL_FOLDER]


def _component_of(backbone: Backbone) -> str:
    """The component whose weights are the denoising network's."""
    names = [component.name for component in backbone.folder.components]
    return next(name for name in ("unet", "transformer") if name in names)
