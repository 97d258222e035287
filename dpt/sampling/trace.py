"""What goes on while a picture is drawn: the score at each call, and the picture as it is foreseen there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from dpt.backbone import Backbone, Text
from dpt.sampling.loop import Around, Call
from dpt.sampling.scorer import Scorer


@dataclass(frozen=True)
class Moment:
    index: int
    t: float
    scores: Tensor | None  # (B,) of the UNet's input at this call, after any correction of the state
    foreseen: Tensor | None  # (B,C,h,w), the z_0 that the prediction amounts to; only at the calls asked for


class Trace(Around):
    def __init__(self, backbone: Backbone, text: Text, scorer: Scorer | None, foresee_at: Collection[int] = ()) -> None:
        self.backbone, self.text, self.scorer, self.foresee_at = backbone, text, scorer, frozenset(foresee_at)
        self.moments: list[Moment] = []

    def after(self, z: Tensor, call: Call, x: Tensor, prediction: Tensor) -> Tensor:
        scores = None if self.scorer is None else self.scorer.score(x, call.t, self.text).cpu()
        wanted = call.index in self.foresee_at
        foreseen = self.backbone.noise.parts(x, prediction, call.t)[0].cpu() if wanted else None
        self.moments.append(Moment(call.index, float(call.t), scores, foreseen))
        return z
