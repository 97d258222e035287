"""Several images per prompt by one method, in a folder: candidates to select from, or regularisation images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.backbone.rng import derived_seed
from dpt.data.folder import METADATA
from dpt.data.images import draw_missing
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.files import atomic_file
from dpt.methods.base import DiffusionMethod
from dpt.records import claim_record
from dpt.sampling.draw import Request
from dpt.untrusted import MOST_IMAGES, parse_json

if TYPE_CHECKING:
    from PIL import Image

BATCH = 16
"""Requests per call of the method."""

RECORD = "drawn.json"


@dataclass(frozen=True)
class CandidateRequest:
    """Image `number` of a prompt. Its noise is a function of (seed, prompt_id, number)."""

    prompt_id: int
    prompt: str
    number: int
    guidance_scale: float | None = None
    """Default: the method's."""

    @property
    def file_name(self) -> str:
        return f"{self.prompt_id}_{self.number}.png"

    def sampled(self, seed: int, negative_prompt: str) -> Request:
        return Request(self.prompt, derived_seed(seed, self.prompt_id, "candidates"), self.number, negative_prompt)


def candidate_requests(
    prompts: Sequence[str], per_prompt: int, guidance_scales: Sequence[float] = ()
) -> list[CandidateRequest]:
    """Several images of each prompt; the guidance scales take turns over them."""
    if len(prompts) * per_prompt > MOST_IMAGES:
        raise UserError(f"{len(prompts)} prompts with {per_prompt} images each are more than {MOST_IMAGES:,}")
    scales = [guidance_scales[k % len(guidance_scales)] if guidance_scales else None for k in range(per_prompt)]
    return [CandidateRequest(i, prompt, k, scale) for i, prompt in enumerate(prompts) for k, scale in enumerate(scales)]


def draw_candidates(
    method: DiffusionMethod,
    requests: Sequence[CandidateRequest],
    seed: int,
    folder: Path,
    negative_prompt: str = "",
    processes: Processes | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> None:
    """Draw what is missing of the images. Several processes share the batches; a killed run continues."""
    group = processes or Processes()
    prompts = [request.prompt for request in requests]
    record = {"seed": seed, "negative_prompt": negative_prompt, **_plain(method.identity), "prompts": prompts}
    scales = list(dict.fromkeys(request.guidance_scale for request in requests))
    if scales != [None]:
        record["guidance_scales"] = scales

    def refusal(changed: list[str]) -> str:
        return f"{folder} holds pictures of another {' and '.join(changed)}: choose another --out"

    group.from_main(lambda: claim_record(folder / RECORD, record, refusal, replace=False))
    of_scale = [[request for request in requests if request.guidance_scale == scale] for scale in scales]
    batches = [own[start : start + BATCH] for own in of_scale for start in range(0, len(own), BATCH)]

    def draw(batch: Sequence[CandidateRequest]) -> Iterable[Image.Image]:
        guided = method.with_guidance_scale(batch[0].guidance_scale)
        return guided.make([request.sampled(seed, negative_prompt) for request in batch])

    draw_missing(batches, folder, draw, group, on_done)


def write_metadata(folder: Path, requests: Sequence[CandidateRequest], kind: str = "") -> None:
    """`metadata.jsonl`: file name, caption and, where given, type and guidance scale of each image."""
    extra = {"type": kind} if kind else {}
    rows: list[dict[str, Any]] = [
        {"file_name": request.file_name, "caption": request.prompt, **extra} for request in requests
    ]
    for row, request in zip(rows, requests, strict=True):
        if request.guidance_scale is not None:
            row["guidance_scale"] = request.guidance_scale
    with atomic_file(folder / METADATA) as work:
        work.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def _plain(identity: Any) -> dict[str, Any]:
    plain: dict[str, Any] = parse_json(json.dumps(dict(identity), default=str))
    return plain
