"""The images of a benchmark: their seeds and files, and their distribution over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dpt.backbone.rng import derived_seed
from dpt.claims.facts import Prompt
from dpt.data.images import read_image, save_png
from dpt.errors import BrokenImageError, UserError
from dpt.evaluation.bench.results import Key, read_lines, repair
from dpt.evaluation.suites.base import Layout, Suite, image_file
from dpt.files import atomic_file
from dpt.untrusted import MOST_IMAGES


@dataclass(frozen=True)
class ImageRequest:
    """Image `index` of a prompt. Its noise is a function of (suite, prompt, index): the same for every method."""

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
    if len(suite.prompts) * per_prompt > MOST_IMAGES:
        total = f"{len(suite.prompts):,} prompts with {per_prompt:,} images each"
        raise UserError(f"{total} are more than {MOST_IMAGES:,} images: lower --per_prompt or --prompts")
    return [
        ImageRequest(prompt, index, suite.id, suite.layout) for prompt in suite.prompts for index in range(per_prompt)
    ]


@dataclass(frozen=True)
class Shard:
    """The batches of this process, of several that share a run."""

    rank: int = 0
    count: int = 1

    def holds(self, batch: int) -> bool:
        return batch % self.count == self.rank

    def file(self, lines: Path) -> Path:
        """The file that this process writes: a part, or the results file of a single process."""
        return lines if self.count == 1 else lines.with_name(f"{lines.stem}.part-{self.rank}.jsonl")


SINGLE_PROCESS = Shard()


def merge_shards(lines: Path, requests: Sequence[ImageRequest]) -> None:
    """Merge the parts of all processes, also of killed ones, into a single file in the order of requests."""
    parts = sorted(lines.parent.glob(f"{lines.stem}.part-*.jsonl"))
    if not parts:
        return
    texts: dict[Key, bytes] = {}
    for file in (*([lines] if lines.exists() else []), *parts):
        repair(file)
        # Parts override the file: they hold the newer line of an image that was drawn again.
        texts |= {line.key: line.text for line in read_lines(file)}
    with atomic_file(lines) as work:
        work.write_bytes(b"".join(texts[request.key] for request in requests if request.key in texts))
    for file in parts:
        file.unlink()


def save_image(picture: Image.Image, request: ImageRequest, folder: Path) -> None:
    file = folder / request.file
    file.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture, file)
    if request.layout == "folders":
        (folder / request.prompt.id / "metadata.jsonl").write_text(f"{request.prompt.source}\n")


def open_image(file: Path) -> Image.Image:
    if not file.exists():
        raise UserError(f"the image {file} is missing: `dpt bench run` draws it again")
    try:
        return read_image(file)[0]
    except BrokenImageError as broken:
        what = "is damaged or only half written: `dpt bench run` draws it again"
        raise UserError(f"the image {file} {what} ({broken.reason})") from None
