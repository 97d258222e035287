"""Several images per prompt by one method, in a folder: candidates to select from, or regularisation images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.backbone.rng import derived_seed
from dpt.data.folder import METADATA
from dpt.data.images import is_whole_image
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.files import atomic_file
from dpt.methods.base import Method
from dpt.sampling.draw import Request
from dpt.untrusted import parse_json, read_json_object

BATCH = 16
"""Requests per call of the method. Rounding depends on the batch, so batches are fixed: an image does not depend on
interruptions or on the number of processes."""

RECORD = "drawn.json"

MOST_PICTURES = 10**7


@dataclass(frozen=True)
class CandidateRequest:
    """Image `number` of a prompt. Its noise is a function of (seed, prompt_id, number)."""

    prompt_id: int
    prompt: str
    number: int

    @property
    def file_name(self) -> str:
        return f"{self.prompt_id}_{self.number}.png"

    def sampled(self, seed: int, negative_prompt: str) -> Request:
        return Request(self.prompt, derived_seed(seed, self.prompt_id, "candidates"), self.number, negative_prompt)


def candidate_requests(prompts: Sequence[str], per_prompt: int) -> list[CandidateRequest]:
    if len(prompts) * per_prompt > MOST_PICTURES:
        raise UserError(f"{len(prompts)} prompts with {per_prompt} pictures each are more than {MOST_PICTURES:,}")
    return [CandidateRequest(i, prompt, k) for i, prompt in enumerate(prompts) for k in range(per_prompt)]


def draw_candidates(
    method: Method,
    requests: Sequence[CandidateRequest],
    seed: int,
    folder: Path,
    negative_prompt: str = "",
    processes: Processes | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> None:
    """Draw what is missing of the images. Several processes share the batches; a killed run continues."""
    group = processes or Processes()
    record = {"seed": seed, "negative_prompt": negative_prompt, **_plain(method.identity)}
    group.from_main(lambda: _claim(folder, record, [request.prompt for request in requests]))
    for batch in group.share(list(_batches(requests))):
        if not all(is_whole_image(folder / request.file_name) for request in batch):
            pictures = method.make([request.sampled(seed, negative_prompt) for request in batch])
            for request, picture in zip(batch, pictures, strict=True):
                with atomic_file(folder / request.file_name) as work:
                    picture.save(work, format="PNG")
        on_done(len(batch))
    group.barrier()


def write_metadata(folder: Path, requests: Sequence[CandidateRequest], kind: str = "") -> None:
    """`metadata.jsonl`: file name, caption and, where given, the type of each image."""
    extra = {"type": kind} if kind else {}
    rows = [{"file_name": request.file_name, "caption": request.prompt, **extra} for request in requests]
    with atomic_file(folder / METADATA) as work:
        work.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def _batches(requests: Sequence[CandidateRequest]) -> Iterator[Sequence[CandidateRequest]]:
    return (requests[start : start + BATCH] for start in range(0, len(requests), BATCH))


def _plain(identity: Any) -> dict[str, Any]:
    plain: dict[str, Any] = parse_json(json.dumps(dict(identity), default=str))
    return plain


def _claim(folder: Path, record: dict[str, Any], prompts: Sequence[str]) -> None:
    """Refuse a folder whose images were drawn from other prompts or with other settings."""
    record = {**record, "prompts": list(prompts)}
    file = folder / RECORD
    try:
        if file.exists():
            stored = read_json_object(file)
            if changed := sorted(name for name in {*stored, *record} if stored.get(name) != record.get(name)):
                raise UserError(f"{folder} holds pictures of another {' and '.join(changed)}: choose another --out")
            return
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as work:
            work.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written: {error.strerror or error}") from None
