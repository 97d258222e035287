"""Which pictures a benchmark makes, where they lie, and how processes share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dpt.backbone.rng import derived_seed
from dpt.claims.prompt import Prompt
from dpt.data.images import read_image
from dpt.errors import BrokenImageError, UserError
from dpt.evaluation.bench import results as rows
from dpt.evaluation.suites.base import Layout, Suite, image_file
from dpt.files import atomic_file

Key = tuple[str, int]
"""A prompt's id, and which of its pictures."""


@dataclass(frozen=True)
class ImageRequest:
    """Picture `index` of a prompt. Its noise is a function of (suite, prompt, index): the same for every method."""

    prompt: Prompt
    index: int
    suite: str
    layout: Layout = "flat"

    @property
    def key(self) -> Key:
        return self.prompt.id, self.index

    @property
    def seed(self) -> int:
        return derived_seed(0, 0, f"{self.suite}/{self.prompt.id}")

    @property
    def file(self) -> Path:
        return image_file(self.layout, self.prompt.id, self.index)


def all_requests(suite: Suite, per_prompt: int) -> list[ImageRequest]:
    return [
        ImageRequest(prompt, index, suite.id, suite.layout) for prompt in suite.prompts for index in range(per_prompt)
    ]


@dataclass(frozen=True)
class Shard:
    """Which of several processes this is."""

    rank: int = 0
    count: int = 1

    def holds(self, part: int) -> bool:
        return part % self.count == self.rank

    def file(self, lines: Path) -> Path:
        """Where it writes: one that is alone, where the lines belong."""
        return lines if self.count == 1 else lines.with_name(f"{lines.stem}.part-{self.rank}.jsonl")


ALONE = Shard()


def merge_shards(lines: Path, asked: Sequence[ImageRequest]) -> None:
    """What processes have left in parts, perhaps when they were killed, into one file in the order of what is asked."""
    parts = sorted(lines.parent.glob(f"{lines.stem}.part-*.jsonl"))
    if not parts:
        return
    found: dict[tuple[str, int], rows.ImageResult] = {}
    for file in (*([lines] if lines.exists() else []), *parts):
        rows.repair(file)
        # A line is twice there if a kill came between the next two steps; whoever wrote it, it says the same.
        found |= {row.key: row for row in rows.read_results(file)}
    with atomic_file(lines) as work:
        rows.append_results(work, (found[one.key] for one in asked if one.key in found))
    for file in parts:
        file.unlink()


def save_image(picture: Image.Image, one: ImageRequest, folder: Path) -> None:
    file = folder / one.file
    file.parent.mkdir(parents=True, exist_ok=True)
    work = file.with_suffix(".tmp")
    picture.save(work, format="PNG")
    work.replace(file)
    if one.layout == "folders":
        (folder / one.prompt.id / "metadata.jsonl").write_text(f"{one.prompt.source}\n")


def open_image(file: Path) -> Image.Image:
    if not file.exists():
        raise UserError(f"the picture {file} is missing: draw it again")
    try:
        return read_image(file)[0]
    except BrokenImageError as broken:
        what = "is damaged or only half written: delete it and draw it again"
        raise UserError(f"the picture {file} {what} ({broken.reason})") from None
