"""Train a CLIP or SigLIP to rank the images of a prompt as people did: the list-wise preference loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dpt.backbone.device import matmul_autocast
from dpt.backbone.rng import SampleRNG
from dpt.data.example import CAPTION_ONLY, ExampleParts
from dpt.data.preference.source import PreferenceBatch, PreferenceStream
from dpt.errors import UserError
from dpt.objectives.losses import agreement, listwise_loss
from dpt.score.preference import LARGEST_LOGIT_SCALE, ClassifierRecord, PreferenceModel
from dpt.training.engine.task import OnBatch, ParameterGroup, Tally, matrices_decay

LISTWISE = "listwise"

CLASSIFIER_FOLDER = "classifier"

ALL_BLOCKS = -1


@dataclass(frozen=True)
class UnlockedBlocks:
    """The last blocks of each tower that are trained, with the norm and the projection after them; -1 for all of it,
    embeddings included."""

    visual: int = 10
    text: int = 6

    def __post_init__(self) -> None:
        for name, count in (("visual", self.visual), ("text", self.text)):
            if count < ALL_BLOCKS:
                raise UserError(f"--{name}_blocks must be at least 0, or -1 for all, not {count}")


def unlock(model: PreferenceModel, blocks: UnlockedBlocks) -> None:
    """Freeze all but the last blocks of each tower, what follows them, and logit_scale."""
    model.requires_grad_(False)
    clip = model.clip
    clip.logit_scale.requires_grad_(True)
    for tower, projection, count in (
        (clip.vision_model, getattr(clip, "visual_projection", None), blocks.visual),
        (clip.text_model, getattr(clip, "text_projection", None), blocks.text),
    ):
        layers = list(tower.encoder.layers)
        if count > len(layers):
            raise UserError(f"there are {len(layers)} blocks in a tower, too few to train the last {count}")
        if count == ALL_BLOCKS:
            tower.requires_grad_(True)
        for layer in layers[len(layers) - max(count, 0) :]:
            layer.requires_grad_(True)
        after = (getattr(tower, name, None) for name in ("post_layernorm", "final_layer_norm", "head"))
        for module in (*after, projection):
            if isinstance(module, nn.Module):
                module.requires_grad_(True)


class PreferenceTask:
    """The task that trains the preference classifier."""

    weights: ClassVar[Mapping[str, float]] = {LISTWISE: 1.0}
    scales_loss = False
    folders = (CLASSIFIER_FOLDER,)

    def __init__(
        self,
        model: PreferenceModel,
        validation: PreferenceStream | None = None,
        blocks: UnlockedBlocks | None = None,
        val_batch_size: int = 16,
        matmul_dtype: torch.dtype = torch.float32,
    ) -> None:
        unlock(model, blocks or UnlockedBlocks())
        self.model, self.validation, self.val_batch_size = model, validation, val_batch_size
        self.matmul_dtype = matmul_dtype

    @property
    def trained(self) -> nn.Module:
        return self.model

    @property
    def parts(self) -> ExampleParts:
        return CAPTION_ONLY

    @property
    def num_validation_examples(self) -> int:
        return 0 if self.validation is None else len(self.validation)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Weight decay on matrices only; logit_scale stays in [0, ln 100], as CLIP's does."""
        scale = "clip.logit_scale"
        groups = [
            ParameterGroup({name: p for name, p in group.named.items() if name != scale}, group.decays)
            for group in matrices_decay(self.model)
        ]
        limited = ParameterGroup({scale: self.model.clip.logit_scale}, decays=False, limits=(0.0, LARGEST_LOGIT_SCALE))
        return [*(group for group in groups if group.named), limited]

    def count(self, batch: PreferenceBatch) -> int:
        return 0

    def losses(self, batch: PreferenceBatch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        with self._autocast(batch):
            cosines = self.model.cosines(batch.pixels, dict(batch.tokens), batch.sizes)
        loss = listwise_loss(self.model.logit_scale * cosines, batch.target, batch.sizes)
        return {LISTWISE: loss.mean(), "logit_scale": self.model.logit_scale.detach()}

    def validate(self, part: int, parts: int, on_batch: OnBatch) -> Tally:
        """Top-1 and pairwise accuracy with the chance of each, and the loss, on the validation records."""
        if self.validation is None:
            return {}
        own = range(part, len(self.validation), parts)
        positions = [own[start : start + self.val_batch_size] for start in range(0, len(own), self.val_batch_size)]
        sums: dict[str, list[float]] = {
            name: [0.0, 0.0] for name in ("loss", "top1", "top1_chance", "pairwise", "pairwise_chance")
        }
        for batch in self.validation.batches(positions):
            for name, total, count in self._tally(batch):
                sums[name][0] += total
                sums[name][1] += count
            on_batch(len(batch))
        return {name: (total, count) for name, (total, count) in sums.items()}

    @torch.no_grad()
    def _tally(self, batch: PreferenceBatch) -> list[tuple[str, float, float]]:
        moved = batch.to(self.model.device)
        cosines = self.model.cosines(moved.pixels, dict(moved.tokens), moved.sizes)
        loss = listwise_loss(self.model.logit_scale * cosines, moved.target, moved.sizes)
        rows = [("loss", float(loss.sum()), float(len(batch)))]
        for scores, ranks in zip(cosines.split(batch.sizes), batch.ranks, strict=True):
            result = agreement(scores.tolist(), ranks)
            rows += [
                ("top1", result.top1, 1.0),
                ("top1_chance", result.chance, 1.0),
                ("pairwise", result.ordered, float(result.pairs)),
                ("pairwise_chance", result.pairs / 2, float(result.pairs)),
            ]
        return rows

    def memory(self, examples: int) -> Mapping[str, int]:
        frozen = sum(p.numel() * p.element_size() for p in self.model.parameters() if not p.requires_grad)
        return {"frozen weights": frozen}

    def export(self, root: Path, base: str = "") -> list[Path]:
        self.model.save(root / CLASSIFIER_FOLDER, ClassifierRecord(base))
        return [root / CLASSIFIER_FOLDER]

    def _autocast(self, batch: PreferenceBatch) -> AbstractContextManager[Any]:
        return matmul_autocast(self.matmul_dtype, batch.pixels.device.type)
