"""The correction loop: detect, judge by the prompt, plan, edit or sample again, until the image shows its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dpt.claims.controller import propose
from dpt.claims.judge import Verdict, judge
from dpt.claims.layout import Edit, Layout, changes, diff, layout_of
from dpt.claims.parse import ParsedPrompt
from dpt.detect.base import Image
from dpt.methods.sld.engine import EditedImage
from dpt.methods.sld.objects import Detect
from dpt.methods.sld.settings import LoopSettings

Action = Literal["edit", "redraw", "refine"]

Status = Literal["right", "unresolved"]

Ending = Literal["right", "no edits", "repeated plan", "max rounds"]


@dataclass(frozen=True)
class CorrectionRound:
    """The image of one round, its detections and verdict, and the plan that led to it. Round 0 has no plan."""

    number: int
    image: Image
    layout: Layout
    """The layout of `image`."""
    verdict: Verdict
    action: Action | None = None
    goal: Layout = ()
    edits: tuple[Edit, ...] = ()
    strength: float | None = None
    mask: np.ndarray | None = None

    @property
    def score(self) -> float:
        """Fraction of the requirements that are met."""
        return sum(atom.met for atom in self.verdict.atoms) / max(1, len(self.verdict.atoms))

    @property
    def plan(self) -> list[str]:
        """The edits in words."""
        if self.action == "refine":
            return ["refine the image"]
        return ["draw it again with another seed"] if self.action == "redraw" else [e.in_words for e in self.edits]


@dataclass(frozen=True)
class LoopResult:
    rounds: tuple[CorrectionRound, ...]
    ending: Ending

    @property
    def best(self) -> CorrectionRound:
        """The best-scoring round; of equal ones the refined, else the first."""
        return max(self.rounds, key=lambda r: (r.score, r.action == "refine"))

    @property
    def status(self) -> Status:
        return "right" if self.best.verdict.passed else "unresolved"


EditImage = Callable[[Image, Sequence[Edit], ParsedPrompt, float, int], EditedImage]
"""(image, edits, parsed, strength, seed)"""

RedrawImage = Callable[[ParsedPrompt, int], Image]
"""(parsed, seed)"""

Judge = Callable[[Layout], Verdict]

Controller = Callable[[ParsedPrompt, Layout], Layout]


@dataclass
class CorrectionLoop:
    detect: Detect
    edit: EditImage
    redraw: RedrawImage | None
    """None if images cannot be sampled again, because they are of unknown origin."""
    settings: LoopSettings = field(default_factory=LoopSettings)
    controller: Controller = propose
    verdict: Judge | None = None
    """None judges by the claims of the prompt."""
    confirm: Detect | None = None
    """Detects again, with more care, before an image counts as wrong and is edited. None: the first time counts."""
    refine: Callable[[Image, ParsedPrompt, int], Image] | None = None
    """Refines the best image at the end. (image, parsed, seed)"""
    restart: bool = False
    """Edit the start image in every round, since instructions are relative to it."""

    def run(self, image: Image, parsed: ParsedPrompt, seed: int) -> LoopResult:
        """The refined image is the result only if it scores as well."""
        result = self._correct(image, parsed, seed)
        if self.refine is None:
            return result
        refined = self._evaluate(len(result.rounds), self.refine(result.best.image, parsed, seed), parsed)
        everywhere = np.ones(image.shape[:2], bool)
        return replace(result, rounds=(*result.rounds, replace(refined, action="refine", mask=everywhere)))

    def _correct(self, image: Image, parsed: ParsedPrompt, seed: int) -> LoopResult:
        """Every claim is checked in every round; each round starts from the best image so far."""
        rounds = [self._evaluate(0, image, parsed)]
        plans: set[tuple[object, ...]] = set()
        while True:
            best = max(rounds, key=lambda r: r.score)
            if best.verdict.passed:
                return LoopResult(tuple(rounds), "right")
            if len(rounds) > self.settings.max_rounds:
                return LoopResult(tuple(rounds), "max rounds")
            best = rounds[0] if self.restart else best
            goal = self.controller(parsed, best.layout)
            edits = diff(best.layout, goal)
            if not changes(edits):
                return LoopResult(tuple(rounds), "no edits")
            number = len(rounds)
            action, strength = self._route(edits, best), self.settings.strength(number - 1)
            plan = (action, strength, tuple(e.in_words for e in edits), id(best.image))
            if plan in plans and action == "edit":
                return LoopResult(tuple(rounds), "repeated plan")
            plans.add(plan)
            rounds.append(self._next_round(number, best, action, goal, edits, strength, parsed, seed))

    def _evaluate(self, number: int, image: Image, parsed: ParsedPrompt) -> CorrectionRound:
        evaluated = self._read(number, image, parsed, self.detect)
        if evaluated.verdict.passed or self.confirm is None:
            return evaluated
        return self._read(number, image, parsed, self.confirm)

    def _read(self, number: int, image: Image, parsed: ParsedPrompt, detect: Detect) -> CorrectionRound:
        detections = detect(image, parsed.nouns)
        layout = layout_of(detections, image.shape[1], image.shape[0])
        verdict = judge(parsed.claims, detections) if self.verdict is None else self.verdict(layout)
        return CorrectionRound(number, image, layout, verdict)

    def _next_round(
        self,
        number: int,
        best: CorrectionRound,
        action: Action,
        goal: Layout,
        edits: tuple[Edit, ...],
        strength: float,
        parsed: ParsedPrompt,
        seed: int,
    ) -> CorrectionRound:
        if action == "redraw":
            assert self.redraw is not None
            made = EditedImage(self.redraw(parsed, seed * 1009 + number), np.ones(best.image.shape[:2], bool))
        else:
            made = self.edit(best.image, edits, parsed, strength, seed * 1009 + number)
        seen = self._evaluate(number, made.image, parsed)
        return replace(seen, action=action, goal=goal, edits=changes(edits), strength=strength, mask=made.mask)

    def _route(self, edits: Sequence[Edit], best: CorrectionRound) -> Action:
        """Edit local faults; sample an image again if it lacks several objects or cannot be read at all."""
        if self.redraw is None or self.settings.policy == "edit":
            return "edit"
        if self.settings.policy == "redraw":
            return "redraw"
        missing = sum("add" in edit.kinds for edit in edits)
        unreadable = any(not t.readable and t.box.width > 0.9 and t.box.height > 0.9 for t in best.layout)
        return "redraw" if unreadable or missing >= self.settings.redraw_from else "edit"
