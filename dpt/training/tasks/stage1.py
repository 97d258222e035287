"""Stage 1, probing (section 2): the adapter learns to match and to ground by the features of a frozen UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dpt.adapter import Adapter
from dpt.adapter.phrases import BackbonePhrases, PhraseEncoder, Phrases
from dpt.adapter.store import save_adapter
from dpt.adapter.token_map import token_map
from dpt.backbone import Backbone, Text
from dpt.backbone.randomness import Chance
from dpt.data.batch import Batch, ExpressionBatch
from dpt.data.pairs import (
    CAPTION,
    EXPRESSION,
    GROUNDING,
    HARD,
    HARD_CAPTION,
    MATCHING,
    RANDOM,
    RANDOM_CAPTION,
    TRUE,
    encode_pictures,
    encode_texts,
    read_pairs,
    said_in,
)
from dpt.data.stream import Stream
from dpt.errors import UserError
from dpt.evaluation.probes.probe import Probe
from dpt.objectives.assignment import AssignmentCosts, Targets, assign
from dpt.objectives.grounding import (
    ALIGN_TEMPERATURE,
    EOS_COEF,
    box_loss,
    cardinality_error,
    contrastive_align_loss,
    giou_loss,
    token_loss,
)
from dpt.objectives.matching import image_to_text_loss, text_to_image_loss
from dpt.training.task import Tally
from dpt.training.tasks.stage1_memory import memory

OF_MATCHING = ("i2t", "t2i")
OF_GROUNDING = ("ce", "bbox", "giou", "align")


@dataclass(frozen=True)
class Objective:
    """What weighs how much: section 2.2."""

    weights: Mapping[str, float] = field(
        default_factory=lambda: {"i2t": 1.0, "t2i": 1.0, "ce": 1.0, "bbox": 5.0, "giou": 2.0, "align": 1.0}
    )
    costs: AssignmentCosts = field(default_factory=AssignmentCosts)
    eos_coef: float = EOS_COEF
    align_temperature: float = ALIGN_TEMPERATURE


@dataclass(frozen=True)
class Noise:
    """At which noise features are read."""

    fix_timestep: int | None = None
    noise_offset: float = 0.0


class Stage1:
    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        phrases: PhraseEncoder,
        validation: Mapping[str, Stream] | None = None,
        objective: Objective | None = None,
        noise: Noise | None = None,
        val_batch_size: int = 16,
        score_grounding: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.backbone, self.adapter, self.phrases = backbone, adapter, phrases
        self.trained = adapter
        self.objective = objective or Objective()
        self.weights = self.objective.weights
        self.noise = noise or Noise()
        self.gradient_checkpointing = gradient_checkpointing
        last = backbone.noise.num_timesteps - 1
        fixed = self.noise.fix_timestep
        if fixed is not None and not 0 <= fixed <= last:
            raise UserError(f"--fix_timestep is between 0 and {last}, not {fixed}")
        middle = backbone.noise.num_timesteps // 2 if fixed is None else fixed
        self.probe = None
        if validation:
            self.probe = Probe(backbone, adapter, validation, (middle,), val_batch_size, score_grounding)

    def count(self, batch: Batch) -> int:
        """Boxes."""
        return 0 if batch.expressions is None else sum(batch.expressions.counts)

    def losses(self, batch: Batch, chance: Chance, share: Tensor) -> dict[str, Tensor]:
        """L_stage1, in parts: one call of each frozen part and one pass of the adapter for all six pairs."""
        batch = self._wanted(batch)
        matching = MATCHING if batch.matching is not None else ()
        pairs = (*(GROUNDING if batch.expressions is not None else ()), *matching)
        with torch.no_grad():
            texts = encode_texts(self.backbone, said_in(batch))
            z = encode_pictures(self.backbone, batch, (TRUE, HARD, RANDOM) if matching else (TRUE,))
            t, noisy = self._noised(z, chance)
            features = read_pairs(self.backbone, self.adapter.config.unet_feature, noisy, t, texts, pairs)
        grounded = 0 if batch.expressions is None else len(batch)
        for_grounding, for_matching = self._decode(features, t.repeat(len(pairs)), grounded)
        losses: dict[str, Tensor] = {}
        if batch.matching is not None:
            losses |= self._match(for_matching.unflatten(0, (len(MATCHING), len(batch))), texts)
        if batch.expressions is not None:
            losses |= self._ground(for_grounding, batch.expressions, texts[EXPRESSION], share)
        return losses

    def _wanted(self, batch: Batch) -> Batch:
        """Without what no loss weighs anything for: it would cost as much as the rest, and change nothing."""
        if batch.expressions is None and batch.matching is None:
            raise UserError("the data have neither expressions nor captions: there is nothing to learn from")
        matched = any(self.weights[name] for name in OF_MATCHING)
        grounded = any(self.weights[name] for name in OF_GROUNDING)
        batch = replace(
            batch,
            matching=batch.matching if matched else None,
            expressions=batch.expressions if grounded else None,
        )
        if batch.expressions is None and batch.matching is None:
            raise UserError("the losses that the data allow all weigh 0: there is nothing to learn")
        return batch

    def _noised(self, z: Tensor, chance: Chance) -> tuple[Tensor, Tensor]:
        """t (B,) and z_t (kinds,B,C,h,w): one t and one noise for each sample, shared by its pictures."""
        shape = z.shape[2:]
        noise = chance.normal(shape, "noise")
        if self.noise.noise_offset:
            noise = noise + self.noise.noise_offset * chance.normal((shape[0], 1, 1), "noise offset")
        t = chance.integers(self.backbone.noise.num_timesteps, "timestep")
        if self.noise.fix_timestep is not None:
            t = torch.full_like(t, self.noise.fix_timestep)
        noise, t = noise.to(z.device, non_blocking=True), t.to(z.device, non_blocking=True)
        return t, torch.stack([self.backbone.add_noise(one, noise, t) for one in z])

    def _decode(self, features: Tensor, t: Tensor, grounded: int) -> tuple[Tensor, Tensor]:
        if self.gradient_checkpointing:
            decoded: tuple[Tensor, Tensor] = checkpoint(
                self.adapter.decode_apart, features, t, grounded, use_reentrant=False
            )
            return decoded
        return self.adapter.decode_apart(features, t, grounded)

    def _match(self, decoded: Tensor, texts: Mapping[str, Text]) -> dict[str, Tensor]:
        """L_i2t and L_t2i, from what was decoded for the pairs of MATCHING, (5,B,Q,d)."""
        vectors = self.adapter.matching_head(decoded.flatten(0, 1)).unflatten(0, decoded.shape[:2]).transpose(0, 1)
        captions = torch.stack([texts[kind].pooled for kind in (CAPTION, HARD_CAPTION, RANDOM_CAPTION)], dim=1)
        scale = self.adapter.scale
        return {
            "i2t": image_to_text_loss(vectors[:, [0, 1, 2]], captions, scale),
            "t2i": text_to_image_loss(vectors[:, [0, 3, 4]], texts[CAPTION].pooled, scale),
        }

    def _ground(self, decoded: Tensor, said: ExpressionBatch, text: Text, share: Tensor) -> dict[str, Tensor]:
        """The losses of section 2.2 that are sums over boxes."""
        phrases = self._encode_phrases(said.texts, text)
        targets = self.targets(said, phrases).to(decoded.device)
        found = self.adapter.grounding_head(decoded)
        assignment = assign(found.logits, found.boxes, targets, self.objective.costs)
        losses = {
            "ce": token_loss(found.logits, targets, assignment, share, self.objective.eos_coef),
            "bbox": box_loss(found.boxes, targets, assignment, share),
            "giou": giou_loss(found.boxes, targets, assignment, share),
        }
        if found.queries is not None:
            tokens = self.adapter.align_text(phrases.states)
            temperature, mask = self.objective.align_temperature, phrases.mask
            losses["align"] = contrastive_align_loss(
                found.queries, tokens, targets, assignment, share, temperature, token_mask=mask
            )
        return {**losses, "cardinality_error": cardinality_error(found.logits, targets)}

    def _encode_phrases(self, texts: Sequence[str], text: Text) -> Phrases:
        if isinstance(self.phrases, BackbonePhrases):  # they have been encoded already
            return self.phrases.encode(texts, text)
        return self.phrases.encode(texts)

    def targets(self, said: ExpressionBatch, phrases: Phrases) -> Targets:
        slots = self.adapter.config.token_slots
        tokens = [token_map(o, spans, slots) for o, spans in zip(phrases.offsets, said.spans, strict=True)]
        return Targets.pad(list(said.boxes_by_example()), tokens)

    def validate(self, part: int, parts: int) -> Tally:
        return {} if self.probe is None else self.probe.tally(part, parts)

    def memory(self, examples: int) -> Mapping[str, int]:
        return memory(self.backbone, self.phrases, self.adapter.config, examples, self.gradient_checkpointing)

    def export(self, folder: Path, base: str = "") -> None:
        """`base` is what the frozen model is called."""
        model = self.backbone
        save_adapter(
            self.adapter, folder, base=base, base_hash=model.model_hash, prediction_type=model.prediction_type
        )
