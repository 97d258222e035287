"""The discriminative losses of the adapter (section 2.2), and estimates of each task's memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dpt.adapter import Adapter, AdapterConfig
from dpt.adapter.model import BackbonePhraseEncoder, EncodedPhrases, PhraseEncoder, token_map
from dpt.backbone import Backbone, Condition
from dpt.backbone.base import Grid
from dpt.data.example import Batch, ExampleParts, ExpressionBatch
from dpt.data.stream import (
    CAPTION,
    EXPRESSION,
    GROUNDING,
    HARD_CAPTION,
    MATCHING,
    PICTURES_AT_ONCE,
    RANDOM_CAPTION,
    Pair,
)
from dpt.errors import UserError
from dpt.objectives.losses import (
    ALIGN_TEMPERATURE,
    EOS_COEF,
    AssignmentCosts,
    Targets,
    assign,
    box_loss,
    cardinality_error,
    contrastive_align_loss,
    giou_loss,
    image_to_text_loss,
    text_to_image_loss,
    token_loss,
)

PAIRS = len(GROUNDING) + len(MATCHING)

IMAGES = 3
"""True image, hard negative, random image."""

VAE_MAPS = 4
"""Feature maps of the VAE's first level that are alive at once while it encodes, in float32."""


def probing_memory(backbone: Backbone, phrases: PhraseEncoder, config: AdapterConfig, examples: int) -> dict[str, int]:
    """Images are encoded, then features are computed without gradients, then the adapter learns: the largest counts."""
    phases = {
        "encoding images": encoding_bytes(backbone, IMAGES * examples),
        "the frozen model's activations": backbone.inference_bytes() * PAIRS * examples,
        "the adapter's activations": adapter_bytes(config, backbone) * examples,
    }
    largest = max(phases, key=lambda phase: phases[phase])
    return {"frozen model": frozen_bytes(backbone, phrases), largest: phases[largest]}


def tuning_memory(
    backbone: Backbone, phrases: PhraseEncoder | None, config: AdapterConfig | None, examples: int, checkpointing: bool
) -> dict[str, int]:
    """Images are encoded, then everything learns together. Without an adapter, by the denoising loss alone."""
    saved = {"the frozen model's activations": backbone.activation_bytes(None, checkpointing) * examples}
    images = examples
    if config is not None:
        others = backbone.activation_bytes(config.unet_feature, checkpointing) * (PAIRS - 1) * examples
        saved["the frozen model's activations"] += others
        saved["the adapter's activations"] = adapter_bytes(config, backbone) * examples
        images = IMAGES * examples
    encoding = {"encoding images": encoding_bytes(backbone, images)}
    largest = max(saved, encoding, key=lambda phase: sum(phase.values()))
    return {"frozen model": frozen_bytes(backbone, phrases), **largest}


def frozen_bytes(backbone: Backbone, phrases: PhraseEncoder | None = None) -> int:
    modules = [*backbone.modules(), getattr(phrases, "encoder", None)]
    parts = (module for module in modules if module is not None)
    frozen = (p for module in parts for p in module.parameters() if not p.requires_grad)
    return sum(p.numel() * p.element_size() for p in frozen)


def encoding_bytes(backbone: Backbone, images: int) -> int:
    """Peak memory of the VAE, which encodes a limited number of images at once."""
    vae = next((module for module in backbone.modules() if hasattr(module.config, "latent_channels")), None)
    if vae is None:
        return 0
    height, width = backbone.default_image_size
    channels = VAE_MAPS * int(vae.config.block_out_channels[0])
    return 4 * height * width * (channels * min(images, PICTURES_AT_ONCE) + 3 * images)


def adapter_bytes(config: AdapterConfig, backbone: Backbone) -> int:
    """What the adapter saves for the backward pass of one example's pairs, counted on the meta device.

    With gradient checkpointing it is saved all the same, while the adapter is computed a second time.
    """
    # Fused attention saves no attention weights. The meta device has no fused attention, a CPU none with dropout.
    fused = not config.dropout or backbone.device.type == "cuda"
    return _saved_bytes(config, backbone.feature_grid(config.unet_feature), fused)


@lru_cache
def _saved_bytes(config: AdapterConfig, grid: Grid, fused: bool) -> int:
    tokens, queries = math.prod(grid), (config.num_queries_matching, config.num_queries_rec, config.num_queries)
    saved: dict[int, tuple[Tensor, int]] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        attention = tensor.ndim > 2 and tensor.shape[-1] == tokens and tensor.shape[-2] in (tokens, *queries)
        if not (fused and attention):
            saved[storage._cdata] = (tensor, storage.nbytes())  # the tensor keeps the storage from being reused
        return tensor

    with torch.device("meta"):
        adapter = Adapter(config).train()
        weights = {p.untyped_storage()._cdata for p in adapter.parameters()}
        features = torch.zeros(PAIRS, sum(config.feature_channels), *grid)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), torch.enable_grad():
            outputs = adapter.decode_split(features, torch.zeros(PAIRS), len(GROUNDING))
    total = sum(size for storage, (_, size) in saved.items() if storage not in weights)
    del outputs
    return total


MATCHING_LOSSES = ("i2t", "t2i")

GROUNDING_LOSSES = ("ce", "bbox", "giou", "align")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and constants of section 2.2."""

    weights: Mapping[str, float] = field(
        default_factory=lambda: {"i2t": 1.0, "t2i": 1.0, "ce": 1.0, "bbox": 5.0, "giou": 2.0, "align": 1.0}
    )
    costs: AssignmentCosts = field(default_factory=AssignmentCosts)
    eos_coef: float = EOS_COEF
    align_temperature: float = ALIGN_TEMPERATURE


class Discriminative:
    def __init__(
        self, adapter: Adapter, phrases: PhraseEncoder, objective: ObjectiveConfig, gradient_checkpointing: bool = False
    ) -> None:
        self.adapter, self.phrases, self.objective = adapter, phrases, objective
        self.gradient_checkpointing = gradient_checkpointing
        if adapter.config.num_queries_rec < 1 and any(objective.weights[name] for name in GROUNDING_LOSSES):
            raise UserError(
                "--num_queries_rec 0 leaves nothing to ground with: raise it, or set all grounding weights to 0"
            )

    @property
    def parts(self) -> ExampleParts:
        """The parts of an example that the weighted losses use."""
        weights = self.objective.weights
        matched, grounded = (any(weights[name] for name in names) for names in (MATCHING_LOSSES, GROUNDING_LOSSES))
        return ExampleParts(expression=grounded, hard_negatives=matched, random_negatives=matched)

    def select(self, batch: Batch) -> Batch:
        """The batch without the parts that no weighted loss uses."""
        parts = self.parts
        if (parts.expression or parts.hard_negatives) and batch.expressions is None and batch.negatives is None:
            raise UserError("the data have neither expressions nor hard negatives: there is nothing to learn from")
        return replace(
            batch,
            negatives=batch.negatives if parts.hard_negatives else None,
            expressions=batch.expressions if parts.expression else None,
        )

    def losses(
        self, features: Tensor, t: Tensor, texts: Mapping[str, Condition], batch: Batch, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """L_stage1, in parts, from the features of `pairs_of(batch)` and their t: one pass of the adapter for all."""
        for_grounding, for_matching = self._decode(features, t, 0 if batch.expressions is None else len(batch))
        losses: dict[str, Tensor] = {}
        if batch.negatives is not None:
            losses |= self.match_losses(for_matching.unflatten(0, (len(MATCHING), len(batch))), texts)
        if batch.expressions is not None:
            losses |= self.ground_losses(for_grounding, batch.expressions, texts[EXPRESSION], num_boxes)
        return losses

    def _decode(self, features: Tensor, t: Tensor, grounded: int) -> tuple[Tensor, Tensor]:
        if self.gradient_checkpointing:
            decoded: tuple[Tensor, Tensor] = checkpoint(
                self.adapter.decode_split, features, t, grounded, use_reentrant=False
            )
            return decoded
        return self.adapter.decode_split(features, t, grounded)

    def match_losses(self, decoded: Tensor, texts: Mapping[str, Condition]) -> dict[str, Tensor]:
        """L_i2t and L_t2i, from the decoded queries (5,B,Q,d) of the pairs in MATCHING."""
        vectors = self.adapter.matching_head(decoded.flatten(0, 1)).unflatten(0, decoded.shape[:2]).transpose(0, 1)
        captions = torch.stack([texts[kind].match for kind in (CAPTION, HARD_CAPTION, RANDOM_CAPTION)], dim=1)
        scale = self.adapter.scale
        return {
            "i2t": image_to_text_loss(vectors[:, [0, 1, 2]], captions, scale),
            "t2i": text_to_image_loss(vectors[:, [0, 3, 4]], texts[CAPTION].match, scale),
        }

    def ground_losses(
        self, decoded: Tensor, expressions: ExpressionBatch, text: Condition, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """The losses that are sums over boxes."""
        phrases = self._encode_phrases(expressions.texts, text)
        targets = self.targets(expressions, phrases).to(decoded.device)
        output = self.adapter.grounding_head(decoded)
        assignment = assign(output.logits, output.boxes, targets, self.objective.costs)
        losses = {
            "ce": token_loss(output.logits, targets, assignment, num_boxes, self.objective.eos_coef),
            "bbox": box_loss(output.boxes, targets, assignment, num_boxes),
            "giou": giou_loss(output.boxes, targets, assignment, num_boxes),
        }
        if output.queries is not None:
            tokens = self.adapter.align_text(phrases.states)
            temperature, mask = self.objective.align_temperature, phrases.mask
            losses["align"] = contrastive_align_loss(
                output.queries, tokens, targets, assignment, num_boxes, temperature, token_mask=mask
            )
        return {**losses, "cardinality_error": cardinality_error(output.logits, targets)}

    def _encode_phrases(self, texts: Sequence[str], text: Condition) -> EncodedPhrases:
        if isinstance(self.phrases, BackbonePhraseEncoder):  # already encoded with the captions
            return self.phrases.encode(texts, text)
        return self.phrases.encode(texts)

    def targets(self, expressions: ExpressionBatch, phrases: EncodedPhrases) -> Targets:
        slots = self.adapter.config.token_slots
        tokens = [
            token_map(offsets, spans, slots) for offsets, spans in zip(phrases.offsets, expressions.spans, strict=True)
        ]
        return Targets.pad(list(expressions.boxes_by_example()), tokens)


def pairs_of(batch: Batch) -> tuple[Pair, ...]:
    """Image-text pairs: call 1 of section 2.1 if there are expressions, then calls 2 to 6 if there are negatives."""
    grounding = GROUNDING if batch.expressions is not None else ()
    return (*grounding, *(MATCHING if batch.negatives is not None else ()))


def boxes_in(batch: Batch) -> int:
    return 0 if batch.expressions is None else sum(batch.expressions.num_boxes)
