"""Matching and grounding accuracy of an adapter on fixed examples, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpt.adapter import Adapter, GroundingOutput
from dpt.backbone import Backbone, Condition
from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch, ExampleParts, ExpressionBatch, NegativeBatch
from dpt.data.pairs import (
    CAPTION,
    GROUNDING,
    HARD,
    HARD_CAPTION,
    TRUE,
    Pair,
    encode_pair_images,
    encode_texts,
    pair_features,
)
from dpt.data.stream import Stream, load
from dpt.intervals import Share
from dpt.objectives.boxes import cxcywh_to_xyxy, pairwise_iou
from dpt.objectives.matching import match_score

OnBatch = Callable[[int], None]
"""Called with the number of examples just done."""

NOISE_SEED = 0

HIT = 0.5
"""IoU from which a box is right."""

COMPARED = (Pair(TRUE, CAPTION), Pair(TRUE, HARD_CAPTION), Pair(HARD, CAPTION))

TEXT, IMAGE, OVERALL, REC = "itm_txt", "itm_img", "itm_overall", "rec"

FOREMOST = (1, 5, 10)
"""The k of P@k: whether one of the k surest boxes is right."""


@dataclass(frozen=True)
class ProbeAnswer:
    question: str
    """TEXT: this picture, which caption? IMAGE: this caption, which picture? REC: where is it?"""
    sort: str
    """The type of the negative, as far as it is known; of REC the data it was asked of."""
    timestep: int
    rank: int | None
    """How many answers were surer than the first right one; None if none was right. Of two, 0 is right."""

    def within(self, k: int) -> bool:
        return self.rank is not None and self.rank < k


class Probe:
    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        streams: Mapping[str, Stream],
        timesteps: Sequence[int],
        batch_size: int = 16,
        score_grounding: bool = True,
    ) -> None:
        self.backbone, self.adapter, self.streams = backbone, adapter, streams
        self.timesteps, self.batch_size, self.score_grounding = tuple(timesteps), batch_size, score_grounding

    @property
    def num_examples(self) -> int:
        return sum(map(len, self.streams.values()))

    def answers(
        self, part: int = 0, parts: int = 1, on_batch: OnBatch = lambda examples: None
    ) -> Iterator[ProbeAnswer]:
        """Of every `parts`-th example of each stream, beginning with `part`."""
        for label, stream in self.streams.items():
            stream = stream.only(ExampleParts(expression=self.score_grounding, random_negatives=False))
            own = range(part, len(stream), parts)
            chunks = [list(own[i : i + self.batch_size]) for i in range(0, len(own), self.batch_size)]
            for positions, batch in zip(chunks, load(stream, chunks), strict=True):
                yield from self.answers_about(batch.to(self.backbone.device), positions, label)
                on_batch(len(batch))

    def tally(
        self, part: int = 0, parts: int = 1, on_batch: OnBatch = lambda examples: None
    ) -> dict[str, tuple[int, int]]:
        """Right answers and questions by name; the names are the same on every process, whatever examples it has."""
        several = [f"{REC}_p1_{label}" for label in self.streams] if len(self.streams) > 1 else []
        names = [TEXT, IMAGE, OVERALL, *([f"{REC}_p1", *several] if self.score_grounding else [])]
        right, asked = Counter[str](), Counter[str]()
        for answer in self.answers(part, parts, on_batch):
            matching = answer.question in (TEXT, IMAGE)
            for name in (answer.question, OVERALL) if matching else (f"{REC}_p1", f"{REC}_p1_{answer.sort}"):
                right[name] += answer.within(1)
                asked[name] += 1
        return {name: (right[name], asked[name]) for name in names}

    @torch.no_grad()
    def answers_about(self, batch: Batch, positions: Sequence[int], label: str) -> Iterator[ProbeAnswer]:
        """To all questions about these examples, with one truncated forward for each timestep."""
        grounding = GROUNDING if batch.expressions is not None and self.score_grounding else ()
        pairs = (*grounding, *(COMPARED if batch.negatives is not None else ()))
        texts = encode_texts(self.backbone, batch, {pair.text for pair in pairs})
        z = encode_pair_images(self.backbone, batch, (TRUE, HARD) if batch.negatives is not None else (TRUE,))
        noise = SampleRNG(NOISE_SEED, positions).normal(z.shape[2:], "validation noise").to(z.device)
        for timestep in self.timesteps:
            t = torch.full((len(batch),), timestep, device=z.device)
            noisy = torch.stack([self.backbone.noise.add_noise(one, noise, t) for one in z])
            features = pair_features(self.backbone, self.adapter.config.unet_feature, noisy, t, texts, pairs)
            grounded = len(batch) * len(grounding)
            for_grounding, for_matching = self.adapter.decode_split(features, t.repeat(len(pairs)), grounded)
            if batch.negatives is not None:
                vectors = self.adapter.matching_head(for_matching).split(len(batch))
                yield from self._compare(vectors, texts, batch.negatives.hard, timestep)
            if grounding and batch.expressions is not None:
                found = self.adapter.grounding_head(for_grounding)
                yield from (ProbeAnswer(REC, label, timestep, rank) for rank in ranks(found, batch.expressions))

    def _compare(
        self, vectors: Sequence[Tensor], texts: Mapping[str, Condition], negatives: NegativeBatch, timestep: int
    ) -> Iterator[ProbeAnswer]:
        true, false_text, false_image = (
            match_score(own, texts[pair.text].match) for own, pair in zip(vectors, COMPARED, strict=True)
        )
        for question, false, sorts in (
            (TEXT, false_text, negatives.caption_types),
            (IMAGE, false_image, negatives.image_types),
        ):
            for right, sort in zip((true > false).tolist(), sorts, strict=True):
                yield ProbeAnswer(question, sort or "", timestep, 0 if right else 1)


def ranks(found: GroundingOutput, said: ExpressionBatch) -> list[int | None]:
    """For each expression that names something: how many queries are surer than the first whose box is right."""
    surest_first = found.logits.softmax(dim=-1)[..., -1].argsort(dim=1, stable=True)
    boxes = cxcywh_to_xyxy(found.boxes)
    ranked: list[int | None] = []
    for order, own, meant in zip(surest_first, boxes, said.boxes_by_example(), strict=True):
        if len(meant):
            right = (pairwise_iou(own[order], cxcywh_to_xyxy(meant)).amax(dim=1) >= HIT).nonzero()
            ranked.append(int(right[0]) if len(right) else None)
    return ranked


MATCHING = (TEXT, IMAGE)


@dataclass(frozen=True)
class ProbeCell:
    """All answers of one question, type and timestep."""

    question: str
    sort: str
    timestep: int
    asked: int
    right: dict[str, int] = field(default_factory=dict)
    """By k: how many had a right answer among the k surest."""


def count_answers(answers: Iterable[ProbeAnswer]) -> list[ProbeCell]:
    asked: Counter[tuple[str, str, int]] = Counter()
    right: Counter[tuple[str, str, int, int]] = Counter()
    for answer in answers:
        key = answer.question, answer.sort, answer.timestep
        asked[key] += 1
        for k in FOREMOST if answer.question == REC else (1,):
            right[(*key, k)] += answer.within(k)
    return [
        ProbeCell(*key, asked[key], {str(k): right[(*key, k)] for k in (FOREMOST if key[0] == REC else (1,))})
        for key in sorted(asked)
    ]


def share(
    cells: Iterable[ProbeCell],
    questions: tuple[str, ...],
    sort: str | None = None,
    timestep: int | None = None,
    k: int = 1,
) -> Share:
    """Over all cells that fit."""
    chosen = [
        cell
        for cell in cells
        if cell.question in questions and sort in (None, cell.sort) and timestep in (None, cell.timestep)
    ]
    return Share(sum(cell.right[str(k)] for cell in chosen), sum(cell.asked for cell in chosen))


def sorts(cells: Iterable[ProbeCell]) -> list[str]:
    """Types of negatives that were asked, in the order of first mention."""
    return list(dict.fromkeys(cell.sort for cell in cells if cell.question in MATCHING and cell.sort))


def timesteps(cells: Iterable[ProbeCell]) -> list[int]:
    return sorted({cell.timestep for cell in cells})
