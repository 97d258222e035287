"""Matching and grounding accuracy of adapters, side by side, and the denoising error of a model, on fixed examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpt.adapter import Adapter, GroundingOutput
from dpt.backbone import Backbone, Condition
from dpt.backbone.device import widest_float
from dpt.backbone.rng import SampleRNG
from dpt.data.example import CAPTION_ONLY, Batch, ExampleParts, ExpressionBatch, NegativeBatch
from dpt.data.stream import (
    CAPTION,
    GROUNDING,
    HARD,
    HARD_CAPTION,
    TRUE,
    Pair,
    Stream,
    encode_pair_images,
    encode_texts,
    load,
    pair_condition,
    pair_features,
    sizes_of,
)
from dpt.intervals import Share
from dpt.objectives.losses import cxcywh_to_xyxy, match_score, pairwise_iou

OnBatch = Callable[[int], None]
"""Called with the number of examples just done."""

NOISE_SEED = 0

IOU_THRESHOLD = 0.5
"""The IoU from which a box counts as right."""

COMPARISONS = (Pair(TRUE, CAPTION), Pair(TRUE, HARD_CAPTION), Pair(HARD, CAPTION))

TEXT, IMAGE, OVERALL, REC, KIND = "itm_txt", "itm_img", "itm_overall", "rec", "rec_kind"

TOP_K = (1, 5, 10)
"""The k of P@k: whether one of the k most confident boxes is right."""


@dataclass(frozen=True)
class ProbeAnswer:
    question: str
    """TEXT: which of two captions fits the image? IMAGE: which of two images fits the caption? REC: where is it?
    KIND: the same as REC, by another category."""
    category: str
    """The type of the negative, "" if unknown; for REC the name of the data, for KIND how the expression refers."""
    timestep: int
    rank: int | None
    """How many candidates scored higher than the first right one; None if none is right."""

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
        """For every `parts`-th example of each stream, from `part` on."""
        for label, stream in self.streams.items():
            stream = stream.only(ExampleParts(expression=self.score_grounding, random_negatives=False))
            own = range(part, len(stream), parts)
            chunks = [list(own[i : i + self.batch_size]) for i in range(0, len(own), self.batch_size)]
            for positions, batch in zip(chunks, load(stream, chunks), strict=True):
                yield from self.answer_batch(batch.to(self.backbone.device), positions, label)
                on_batch(len(batch))

    def tally(
        self, part: int = 0, parts: int = 1, on_batch: OnBatch = lambda examples: None
    ) -> dict[str, tuple[int, int]]:
        """Right answers and questions by metric. Every process has the same metrics, whatever its examples."""
        by_stream = [f"{REC}_p1_{label}" for label in self.streams] if len(self.streams) > 1 else []
        names = [TEXT, IMAGE, OVERALL, *([f"{REC}_p1", *by_stream] if self.score_grounding else [])]
        hits, totals = Counter[str](), Counter[str]()
        for answer in self.answers(part, parts, on_batch):
            if answer.question == KIND:
                continue
            matching = answer.question in (TEXT, IMAGE)
            for name in (answer.question, OVERALL) if matching else (f"{REC}_p1", f"{REC}_p1_{answer.category}"):
                hits[name] += answer.within(1)
                totals[name] += 1
        return {name: (hits[name], totals[name]) for name in names}

    @torch.no_grad()
    def answer_batch(self, batch: Batch, positions: Sequence[int], label: str) -> Iterator[ProbeAnswer]:
        """All answers for these examples, with one truncated forward per timestep."""
        grounding = GROUNDING if batch.expressions is not None and self.score_grounding else ()
        pairs = (*grounding, *(COMPARISONS if batch.negatives is not None else ()))
        texts = encode_texts(self.backbone, batch, {pair.text for pair in pairs})
        z = encode_pair_images(self.backbone, batch, (TRUE, HARD) if batch.negatives is not None else (TRUE,))
        condition = pair_condition(texts, sizes_of(batch), pairs)
        noise = SampleRNG(NOISE_SEED, positions).normal(z.shape[2:], "validation noise").to(z.device)
        for timestep in self.timesteps:
            t = torch.full((len(batch),), timestep, device=z.device)
            noisy = torch.stack([self.backbone.noise.add_noise(latents, noise, t) for latents in z])
            features = pair_features(self.backbone, self.adapter.config.unet_feature, noisy, t, condition, pairs)
            grounded = len(batch) * len(grounding)
            for_grounding, for_matching = self.adapter.decode_split(features, t.repeat(len(pairs)), grounded)
            if batch.negatives is not None:
                vectors = self.adapter.matching_head(for_matching).split(len(batch))
                yield from self._compare(vectors, texts, batch.negatives.hard, timestep)
            if grounding and batch.expressions is not None:
                output = self.adapter.grounding_head(for_grounding)
                yield from _located(output, batch.expressions, label, timestep)

    def _compare(
        self, vectors: Sequence[Tensor], texts: Mapping[str, Condition], negatives: NegativeBatch, timestep: int
    ) -> Iterator[ProbeAnswer]:
        true, false_text, false_image = (
            match_score(queries, texts[pair.text].match) for queries, pair in zip(vectors, COMPARISONS, strict=True)
        )
        for question, false, categories in (
            (TEXT, false_text, negatives.caption_types),
            (IMAGE, false_image, negatives.image_types),
        ):
            for right, category in zip((true > false).tolist(), categories, strict=True):
                yield ProbeAnswer(question, category or "", timestep, 0 if right else 1)


def _located(output: GroundingOutput, expressions: ExpressionBatch, label: str, timestep: int) -> Iterator[ProbeAnswer]:
    having_boxes = [number > 0 for number in expressions.num_boxes]
    kinds = [kind for kind, has in zip(expressions.kinds or [""] * len(having_boxes), having_boxes, strict=True) if has]
    for rank, kind in zip(ranks(output, expressions), kinds, strict=True):
        yield ProbeAnswer(REC, label, timestep, rank)
        if kind:
            yield ProbeAnswer(KIND, kind, timestep, rank)


def ranks(output: GroundingOutput, expressions: ExpressionBatch) -> list[int | None]:
    """For each expression with boxes: how many queries score higher than the first whose box is right."""
    order_by_score = output.logits.softmax(dim=-1)[..., -1].argsort(dim=1, stable=True)
    boxes = cxcywh_to_xyxy(output.boxes)
    ranked: list[int | None] = []
    for order, predicted, targets in zip(order_by_score, boxes, expressions.boxes_by_example(), strict=True):
        if len(targets):
            right = (pairwise_iou(predicted[order], cxcywh_to_xyxy(targets)).amax(dim=1) >= IOU_THRESHOLD).nonzero()
            ranked.append(int(right[0]) if len(right) else None)
    return ranked


MATCHING = (TEXT, IMAGE)


@dataclass(frozen=True)
class ProbeCell:
    """Counted answers to one question, by category and timestep."""

    question: str
    category: str
    timestep: int
    total: int
    hits: dict[str, int] = field(default_factory=dict)
    """By k: how many had a right candidate among the top k."""

    def plain(self) -> dict[str, Any]:
        """As stored in probe.json."""
        return {
            "question": self.question,
            "sort": self.category,
            "timestep": self.timestep,
            "asked": self.total,
            "right": self.hits,
        }


def count_answers(answers: Iterable[ProbeAnswer]) -> list[ProbeCell]:
    totals: Counter[tuple[str, str, int]] = Counter()
    hits: Counter[tuple[str, str, int, int]] = Counter()
    for answer in answers:
        key = answer.question, answer.category, answer.timestep
        totals[key] += 1
        for k in TOP_K if answer.question == REC else (1,):
            hits[(*key, k)] += answer.within(k)
    return [
        ProbeCell(*key, totals[key], {str(k): hits[(*key, k)] for k in (TOP_K if key[0] == REC else (1,))})
        for key in sorted(totals)
    ]


def accuracy(
    cells: Iterable[ProbeCell],
    questions: tuple[str, ...],
    category: str | None = None,
    timestep: int | None = None,
    k: int = 1,
) -> Share:
    """Over all matching cells."""
    chosen = [
        cell
        for cell in cells
        if cell.question in questions and category in (None, cell.category) and timestep in (None, cell.timestep)
    ]
    return Share(sum(cell.hits[str(k)] for cell in chosen), sum(cell.total for cell in chosen))


def categories(cells: Iterable[ProbeCell], questions: Sequence[str] = MATCHING) -> list[str]:
    """Types of negatives, or of what else the questions are about, in order of appearance."""
    return list(dict.fromkeys(cell.category for cell in cells if cell.question in questions and cell.category))


def timesteps(cells: Iterable[ProbeCell]) -> list[int]:
    return sorted({cell.timestep for cell in cells})


@torch.no_grad()
def denoising_error(
    backbone: Backbone,
    streams: Mapping[str, Stream],
    batch_size: int = 16,
    part: int = 0,
    parts: int = 1,
    on_batch: Callable[[int], None] = lambda examples: None,
) -> tuple[float, int]:
    """The summed mean square error of every `parts`-th captioned example from `part` on, and their number.

    Each example always has the same timestep and noise, so that two models can be compared.
    """
    total, count = torch.zeros((), dtype=widest_float(backbone.device), device=backbone.device), 0
    for stream in streams.values():
        if not stream.source.captioned:
            continue
        stream = stream.only(CAPTION_ONLY)
        own = range(part, len(stream), parts)
        chunks = [list(own[i : i + batch_size]) for i in range(0, len(own), batch_size)]
        for positions, batch in zip(chunks, load(stream, chunks), strict=True):
            batch, rng = batch.to(backbone.device), SampleRNG(NOISE_SEED, positions)
            condition = pair_condition(encode_texts(backbone, batch, {CAPTION}), sizes_of(batch), [Pair(TRUE, CAPTION)])
            (z,) = encode_pair_images(backbone, batch, (TRUE,))
            noise = rng.normal(z.shape[1:], "validation noise").to(z.device)
            t = backbone.noise.sample_t(rng, "validation timestep").to(z.device)
            prediction = backbone.predict(backbone.noise.add_noise(z, noise, t), t, condition)
            error = prediction - backbone.noise.target(z, noise, t)
            total += error.to(total).square().flatten(1).mean(dim=1).sum()
            count += len(batch)
            on_batch(len(batch))
    return float(total), count


def num_captioned(streams: Mapping[str, Stream]) -> int:
    """How many examples `denoising_error` reads in all."""
    return sum(len(stream) for stream in streams.values() if stream.source.captioned)


NAMES = {TEXT: "text side", IMAGE: "image side", REC: "grounding"}


@dataclass(frozen=True)
class ProbeResult:
    """The counted answers of one adapter."""

    name: str
    """Its name in tables: the feature it reads."""
    where: str
    """Its path."""
    cells: tuple[ProbeCell, ...]
    denoising: tuple[float, float] | None = None
    """Mean square error on the true images: of the tuned model, and of the base model."""

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "cells": [cell.plain() for cell in self.cells]}


def summary(results: Sequence[ProbeResult], timestep: int) -> str:
    """The headline at one timestep: a row for each adapter."""
    columns: list[tuple[str, Callable[[ProbeResult], Share]]] = [
        ("ITM", lambda result: accuracy(result.cells, MATCHING, timestep=timestep)),
        ("ITM, text side", lambda result: accuracy(result.cells, (TEXT,), timestep=timestep)),
        ("ITM, image side", lambda result: accuracy(result.cells, (IMAGE,), timestep=timestep)),
        *((f"REC P@{k}", lambda result, k=k: accuracy(result.cells, (REC,), timestep=timestep, k=k)) for k in TOP_K),
    ]
    return _table("feature", results, columns)


def by_category(results: Sequence[ProbeResult], timestep: int, questions: tuple[str, ...] = MATCHING) -> str:
    """At one timestep: ITM by the type of the negative, both sides together, or other questions by their category."""
    found = categories([cell for result in results for cell in result.cells], questions)
    return _table(
        "feature",
        results,
        [(name, lambda result, name=name: accuracy(result.cells, questions, name, timestep)) for name in found],  # type: ignore[misc]
    )


def by_timestep(results: Sequence[ProbeResult], questions: tuple[str, ...]) -> str:
    times = timesteps([cell for result in results for cell in result.cells])
    return _table(
        "feature \\ t",
        results,
        [(str(t), lambda result, t=t: accuracy(result.cells, questions, timestep=t)) for t in times],  # type: ignore[misc]
    )


def denoising_changes(results: Sequence[ProbeResult]) -> str:
    lines = ["| feature | before | tuned | change |", "|---|---|---|---|"]
    for result in results:
        if result.denoising is not None:
            tuned, before = result.denoising
            lines.append(f"| {result.name} | {before:.4f} | {tuned:.4f} | {100 * (tuned / before - 1):+.1f} % |")
    return "\n".join(lines)


def report(results: Sequence[ProbeResult], timestep: int) -> str:
    """All tables, as Markdown."""
    parts = [
        (f"At timestep {timestep}", summary(results, timestep)),
        (f"Matching by type of negative, at timestep {timestep}", by_category(results, timestep)),
        ("Matching by timestep, both sides", by_timestep(results, MATCHING)),
        ("Grounding by timestep, P@1", by_timestep(results, (REC,))),
    ]
    if any(cell.question == KIND for result in results for cell in result.cells):
        kinds = by_category(results, timestep, (KIND,))
        parts.append((f"Grounding by kind of expression, P@1, at timestep {timestep}", kinds))
    if any(result.denoising is not None for result in results):
        parts.append(("Denoising error of held-out pictures under their captions", denoising_changes(results)))
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts) + "\n"


def plot(results: Sequence[ProbeResult], timestep: int, file: Path) -> None:
    """By timestep on top; by type of negative, at one timestep, below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, questions, title in (
        (axes[0, 0], MATCHING, "image-text matching, one hard negative, %"),
        (axes[0, 1], (REC,), "grounding, P@1 at IoU 0.5, %"),
    ):
        for number, result in enumerate(results):
            times = timesteps(result.cells)
            accuracies = [accuracy(result.cells, questions, timestep=t) for t in times]
            shown = [(t, s.percent) for t, s in zip(times, accuracies, strict=True) if s.total]
            if shown:
                axis.plot(*zip(*shown, strict=True), marker="o", markersize=3, label=result.name, **_line_style(number))
        axis.set(title=title, xlabel="timestep (noise)", ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0, 0].axhline(50, color="grey", linewidth=0.8, linestyle=":")
    axes[0, 0].legend(fontsize=8, ncols=2)
    for axis, side in ((axes[1, 0], TEXT), (axes[1, 1], IMAGE)):
        _heat(axis, results, side, timestep)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _line_style(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "linestyle": ("-", "--")[number // 10 % 2]}


def _heat(axis: Any, results: Sequence[ProbeResult], question: str, timestep: int) -> None:
    kinds = categories([cell for result in results for cell in result.cells])
    accuracies = [[accuracy(result.cells, (question,), kind, timestep) for kind in kinds] for result in results]
    grid = [[share.percent if share.total else float("nan") for share in row] for row in accuracies]
    axis.imshow(grid, vmin=50, vmax=100, cmap="YlGn", aspect="auto")
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_yticks(range(len(results)), [result.name for result in results])
    axis.set_title(f"matching by negative, {NAMES[question]}, t = {timestep}, %")
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            axis.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > 85 else "black")


def _table(
    corner: str, results: Sequence[ProbeResult], columns: Sequence[tuple[str, Callable[[ProbeResult], Share]]]
) -> str:
    lines = ["| " + " | ".join([corner, *(name for name, _ in columns)]) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join([result.name, *(str(of(result)) for _, of in columns)]) + " |" for result in results]
    return "\n".join(lines)
