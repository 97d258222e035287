"""The discriminative losses of the adapter (section 2.2): matching and grounding, from features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dpt.adapter import Adapter
from dpt.adapter.phrase_encoder import BackbonePhraseEncoder, EncodedPhrases, PhraseEncoder, token_map
from dpt.backbone import Condition
from dpt.data.example import Batch, ExampleParts, ExpressionBatch
from dpt.data.pairs import CAPTION, EXPRESSION, GROUNDING, HARD_CAPTION, MATCHING, RANDOM_CAPTION, Pair
from dpt.errors import UserError
from dpt.objectives.boxes import AssignmentCosts, Targets, assign
from dpt.objectives.losses import (
    ALIGN_TEMPERATURE,
    EOS_COEF,
    box_loss,
    cardinality_error,
    contrastive_align_loss,
    giou_loss,
    image_to_text_loss,
    text_to_image_loss,
    token_loss,
)

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
