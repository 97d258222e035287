"""What an adapter knows (section 6): image-text matching against one hard negative, and grounding.

Examples, negatives, noise and timestep are always the same, so two tallies differ only by what was learnt. Both
candidates of a comparison have the same noise. A tie is not an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dpt.adapter import Adapter, Grounding
from dpt.backbone import Backbone
from dpt.data.batch import Batch, ExpressionBatch
from dpt.data.stream import Stream, load
from dpt.objectives.boxes import cxcywh_to_xyxy, pairwise_iou
from dpt.objectives.matching import match_score
from dpt.training.chance import Chance
from dpt.training.task import Tally
from dpt.training.tasks.pairs import (
    CAPTION,
    EXPRESSION,
    GROUNDING,
    HARD,
    HARD_CAPTION,
    TRUE,
    Pair,
    encode_pictures,
    encode_texts,
    read_pairs,
    said_in,
)

NOISE_SEED = 0
HIT = 0.5
"""IoU from which a box is right."""
COMPARED = (Pair(TRUE, CAPTION), Pair(TRUE, HARD_CAPTION), Pair(HARD, CAPTION))
TEXT, IMAGE, OVERALL, REC = "itm_txt", "itm_img", "itm_overall", "rec_p1"


class Probe:
    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        streams: Mapping[str, Stream],
        timestep: int,
        batch_size: int = 16,
        score_grounding: bool = True,
    ) -> None:
        self.backbone, self.adapter, self.streams = backbone, adapter, streams
        self.timestep, self.batch_size, self.score_grounding = timestep, batch_size, score_grounding

    def tally(self, part: int = 0, parts: int = 1) -> Tally:
        """Right answers and questions, over every `parts`-th example of each stream beginning with `part`."""
        right, asked = Counter[str](), Counter[str]()
        for label, stream in self.streams.items():
            for name, answers in self._answers_of(stream, range(part, len(stream), parts)):
                names = [name, OVERALL] if name in (TEXT, IMAGE) else [REC, f"{REC}_{label}"]
                for one in names:
                    right[one] += int(answers.sum())
                    asked[one] += len(answers)
        return {name: (right[name], asked[name]) for name in self._names()}

    def _answers_of(self, stream: Stream, own: range) -> Iterator[tuple[str, Tensor]]:
        chunks = [list(own[i : i + self.batch_size]) for i in range(0, len(own), self.batch_size)]
        for positions, batch in zip(chunks, load(stream, chunks), strict=True):
            yield from self.answers(batch.to(self.backbone.device), positions).items()

    def _names(self) -> list[str]:
        """The same on every process, whichever examples it has."""
        several = [f"{REC}_{label}" for label in self.streams] if len(self.streams) > 1 else []
        return [TEXT, IMAGE, OVERALL, *([REC, *several] if self.score_grounding else [])]

    @torch.no_grad()
    def answers(self, batch: Batch, positions: list[int]) -> dict[str, Tensor]:
        """Whether each question was answered rightly; one truncated forward for all of them."""
        grounding = GROUNDING if batch.expressions is not None and self.score_grounding else ()
        compared = COMPARED if batch.matching is not None else ()
        pairs = (*grounding, *compared)
        said = said_in(batch)
        texts = encode_texts(self.backbone, {kind: said[kind] for kind in _texts_of(pairs)})
        z = encode_pictures(self.backbone, batch, (TRUE, HARD) if compared else (TRUE,))
        noise = Chance(NOISE_SEED, positions).normal(z.shape[2:], "validation noise").to(z.device)
        t = torch.full((len(batch),), self.timestep, device=z.device)
        noisy = torch.stack([self.backbone.add_noise(one, noise, t) for one in z])
        features = read_pairs(self.backbone, self.adapter.config.unet_feature, noisy, t, texts, pairs)
        decoded = self.adapter.decode(features, t.repeat(len(pairs)))
        read = dict(zip(pairs, decoded.split(len(batch)), strict=True))
        found: dict[str, Tensor] = {}
        if compared:
            true, false_text, false_image = (
                match_score(self.adapter.matching_head(read[pair]), texts[pair.text].pooled) for pair in COMPARED
            )
            found |= {TEXT: true > false_text, IMAGE: true > false_image}
        if grounding and batch.expressions is not None:
            found[REC] = hits(self.adapter.grounding_head(read[GROUNDING[0]]), batch.expressions)
        return found


def hits(found: Grounding, said: ExpressionBatch) -> Tensor:
    """P@1: whether the surest query's box meets one that is meant; not asked where none is."""
    surest = found.logits.softmax(dim=-1)[..., -1].argmin(dim=1)
    best = cxcywh_to_xyxy(found.boxes[torch.arange(len(surest), device=surest.device), surest])
    meant = said.boxes_by_example()
    overlaps = [
        pairwise_iou(box[None], cxcywh_to_xyxy(boxes)).amax()
        for box, boxes in zip(best, meant, strict=True)
        if len(boxes)
    ]
    return torch.stack(overlaps) >= HIT if overlaps else torch.zeros(0, dtype=torch.bool)


def _texts_of(pairs: tuple[Pair, ...]) -> list[str]:
    return [kind for kind in (EXPRESSION, CAPTION, HARD_CAPTION) if any(pair.text == kind for pair in pairs)]
