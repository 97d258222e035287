"""Preference scores of a folder of images, shared by processes; and the clear winners and losers by them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image as PILImage

from dpt.data.files.reading import Row, is_number, parse_line, read_json, read_lines, shown
from dpt.data.folder import read_picture_folder
from dpt.data.images import read_image
from dpt.data.preference.source import NEGATIVE, POSITIVE
from dpt.detect.base import Image
from dpt.distributed import Processes
from dpt.errors import BrokenImageError, DataError, UserError
from dpt.files import atomic_file
from dpt.records import claim_record


@dataclass(frozen=True)
class ScoredPicture:
    """A line of the scores file."""

    id: int
    prompt: str
    score: float
    """100 * cosine."""
    blurry: bool = False
    file_name: str = ""


@dataclass(frozen=True)
class SelectionConfig:
    """An image is selected if its softmax probability within its group exceeds `factor` / n."""

    temperature: float = 1.0
    """The scores, 100 times a cosine, are divided by it before the softmax."""
    min_pictures: int = 4
    """Smaller groups are left out. Blurry images do not count."""
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not 1e-6 <= self.temperature < math.inf:
            raise UserError(f"--temperature must be positive, not {self.temperature}")
        if self.min_pictures < 2:
            raise UserError(f"--min_pictures must be at least 2, not {self.min_pictures}")
        if not self.factor > 0:
            raise UserError(f"--factor must be positive, not {self.factor}")


@dataclass(frozen=True)
class SelectedPicture:
    picture: ScoredPicture
    type: Literal["positive", "negative"]
    confidence: float
    """Its softmax probability; for a negative, with negated scores."""
    batch_size: int
    """Images in its group."""


def softmax(values: Sequence[float]) -> list[float]:
    """The largest value is subtracted, so that no scale overflows."""
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def select(pictures: Iterable[ScoredPicture], config: SelectionConfig | None = None) -> list[SelectedPicture]:
    """At most one positive and one negative for each prompt, in the order of their ids.

    Groups are formed by the exact prompt. Ties go to the smallest id. The order of the images does not matter.
    """
    config = config or SelectionConfig()
    groups: dict[str, list[ScoredPicture]] = {}
    for picture in sorted(pictures, key=lambda picture: picture.id):
        if not picture.blurry:
            groups.setdefault(picture.prompt, []).append(picture)
    selected = [chosen for group in groups.values() for chosen in _select_of_group(group, config)]
    return sorted(selected, key=lambda chosen: (chosen.picture.id, chosen.type))


def _select_of_group(group: Sequence[ScoredPicture], config: SelectionConfig) -> Iterable[SelectedPicture]:
    n = len(group)
    if n < config.min_pictures:
        return
    scores = [picture.score / config.temperature for picture in group]
    for kind, signed in ((POSITIVE, scores), (NEGATIVE, [-score for score in scores])):
        shares = softmax(signed)
        best = shares.index(max(shares))
        if shares[best] > config.factor / n:
            yield SelectedPicture(group[best], kind, shares[best], n)  # type: ignore[arg-type]


BATCH = 16
"""Images scored together. Rounding depends on the batch, so batches are fixed."""

DECIMALS = 4

LARGEST_SCORE = 10**6
"""Of any scorer; a cosine times 100 is at most 100."""

SHARP_EDGE = 10
"""Levels of 255: an image without any difference between neighbours of at least this is blurry."""


class ImageScorer(Protocol):
    identity: str

    def scores(self, images: Sequence[Image], prompts: Sequence[str]) -> list[float]: ...


@dataclass(frozen=True)
class PromptedPicture:
    id: int
    file_name: str
    prompt: str


def is_blurry(picture: PILImage.Image) -> bool:
    """Whether no two neighbouring pixels, left-right or above-below, differ by 10 levels in any channel."""
    levels = np.asarray(picture.convert("RGB"), dtype=np.int16)
    steps = [np.abs(np.diff(levels, axis=axis)).max(initial=0) for axis in (0, 1)]
    return bool(max(steps) < SHARP_EDGE)


def prompted_pictures(folder: Path, meta_file: Path | None = None) -> list[PromptedPicture]:
    """The images of a folder with captions, or those of a JSON list of `file_name` and `caption`."""
    if meta_file is None:
        rows = [(row.file_name, row.caption) for row in read_picture_folder(folder)]
    else:
        content = read_json(meta_file)
        if not isinstance(content, list) or not content:
            raise DataError(f"{meta_file} should be a list of file names and captions, not {shown(content)}")
        entries = [Row(entry, f"{meta_file}, entry {number}") for number, entry in enumerate(content, 1)]
        rows = [(row.file_name("file_name"), row.text("caption")) for row in entries]
    return [PromptedPicture(number, *row) for number, row in enumerate(rows)]


@dataclass(frozen=True)
class ScoringResult:
    scored: list[ScoredPicture]
    skipped: list[str]
    """A sentence for each image that cannot be read."""


def score_pictures(
    pictures: Sequence[PromptedPicture],
    folder: Path,
    scorer: ImageScorer,
    out: Path,
    processes: Processes | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> ScoringResult:
    """Write `out`, a JSON line per image: id, prompt, score, blurry, file_name. Unreadable images are left out."""
    group = processes or Processes()
    group.from_main(lambda: _claim(out, scorer.identity, pictures))
    known = {line.id for file in _files(out) for line in read_scores(file, partial=True)}
    skipped: list[str] = []
    batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    with _part(out, group.rank).open("a", encoding="utf-8") as part:
        for batch in group.share(batches):
            if not all(picture.id in known for picture in batch):
                lines, broken = _score_batch(batch, folder, scorer)
                skipped += broken
                part.write("".join(f"{json.dumps(asdict(line), ensure_ascii=False)}\n" for line in lines))
                part.flush()
            on_done(len(batch))
    group.barrier()
    group.from_main(lambda: _merge(out, pictures))
    every = [sentence for own in group.gather(lambda: skipped) for sentence in own]
    return ScoringResult(list(read_scores(out)), every)


def _score_batch(
    batch: Sequence[PromptedPicture], folder: Path, scorer: ImageScorer
) -> tuple[list[ScoredPicture], list[str]]:
    opened, broken = [], []
    for picture in batch:
        try:
            opened.append((picture, read_image(folder / picture.file_name, folder)[0]))
        except BrokenImageError as error:
            broken.append(str(error))
    scores = scorer.scores([np.asarray(image) for _, image in opened], [picture.prompt for picture, _ in opened])
    return [
        ScoredPicture(picture.id, picture.prompt, round(score, DECIMALS), is_blurry(image), picture.file_name)
        for (picture, image), score in zip(opened, scores, strict=True)
    ], broken


def read_scores(file: Path, partial: bool = False) -> Iterator[ScoredPicture]:
    """`partial`: a last line that was cut when the run was killed is left out."""
    if not file.exists():
        raise DataError(f"there are no scores {file}: write them with `dpt prefer score`")
    for where, text in read_lines(file):
        try:
            row = parse_line(text, where)
            score: Any = row.content.get("score")
            if not is_number(score) or abs(score) > LARGEST_SCORE:
                row.fail(f"'score' should be a number of at most {LARGEST_SCORE:,}, not {shown(score)}")
            name = row.file_name("file_name") if "file_name" in row else ""
            blurry = row.get("blurry", bool) if "blurry" in row else False
            line = ScoredPicture(row.get("id", int), row.text("prompt"), float(score), blurry, name)
        except DataError:
            if partial:
                continue
            raise
        yield line


def _merge(out: Path, pictures: Sequence[PromptedPicture]) -> None:
    """One line per image, in the order of the images; then the parts are removed."""
    lines = {line.id: line for file in _files(out) for line in read_scores(file, partial=True)}
    known = [lines[picture.id] for picture in pictures if picture.id in lines]
    with atomic_file(out) as work:
        text = "".join(f"{json.dumps(asdict(line), ensure_ascii=False)}\n" for line in known)
        work.write_text(text, encoding="utf-8")
    for part in _parts(out):
        part.unlink()


def _part(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.stem}.part-{rank}.jsonl")


def _parts(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{out.stem}.part-*.jsonl"))


def _files(out: Path) -> list[Path]:
    return [*([out] if out.exists() else []), *_parts(out)]


def _claim(out: Path, scorer: str, pictures: Sequence[PromptedPicture]) -> None:
    """Refuse to continue scores of another scorer or of other images."""

    def refusal(changed: list[str]) -> str:
        what = "by another scorer" if "scorer" in changed else "of other pictures"
        return f"{out} holds scores {what}: choose another --out"

    record = {"scorer": scorer, "pictures": [[picture.file_name, picture.prompt] for picture in pictures]}
    claim_record(out.with_name(f"{out.stem}.record.json"), record, refusal, replace=not _files(out))
