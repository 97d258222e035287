"""What the commands of `dpt sld` share: flags, what they open, and the lines and tables of what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.embedded import EMBEDDED
from dpt.errors import BrokenImageError, UserError, fail
from dpt.intervals import Share
from dpt.methods.sld.detecting import QUERIES
from dpt.methods.sld.settings import EngineSettings, LoopSettings
from dpt.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from dpt.claims.judge import DetectConfig
    from dpt.detect.base import Image
    from dpt.methods.sld.method import Corrector
    from dpt.methods.sld.planner import Planner


SMALLEST_SIDE = 16
"""Pixels; a smaller image holds no object that could be moved."""


@dataclass(frozen=True)
class SLDModelOptions:
    """The model that edits, the detector that checks, and the seeds."""

    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    detector: Annotated[str, tyro.conf.arg(metavar="oracle|FOLDER|HUB_ID")] = "oracle"
    """The detector: oracle for rendered scenes; owlv2, owlvit, grounding-dino, or any checkpoint of these."""
    masks: Annotated[str | None, tyro.conf.arg(metavar="oracle|box|ellipse|FOLDER|HUB_ID")] = None
    """Segmentation masks of objects: oracle for rendered scenes (the default with that detector), box, ellipse (the
    default otherwise), or a SAM or SAM 2 model."""
    readings: int | None = None
    """Read each image so many times, shifted and flipped, and count what most readings show: from 1 to 9. Default: 1
    with the oracle, which does not err, 5 otherwise."""
    editor: Annotated[str, tyro.conf.arg(metavar="latents|inpaint=FOLDER|instruct=FOLDER")] = "latents"
    """What makes the edits: latents, the model itself; inpaint, an inpainting pipeline of diffusers, or Flux Fill;
    instruct, a pipeline that follows instructions: Flux Kontext, Qwen-Image-Edit, InstructPix2Pix."""
    refiner: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A pipeline of diffusers that refines the result as image to image, such as SDXL's refiner. The refined image is
    kept if it shows what was right before; pixels away from the edits change too."""
    refiner_strength: float = 0.3
    guidance_scale: float | None = None
    """By default the model's own: its generation_defaults.json, or 7.5."""
    llm: Literal["rules", "openai", "transformers", "replay"] = "rules"
    """The planner: rules, offline, for the prompts and instructions that they know; openai, any server with
    OpenAI's chat route; transformers, a local model; replay, recorded replies."""
    llm_model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER|FILE")] = ""
    llm_url: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Address of the server, such as http://localhost:8000/v1; default: OPENAI_BASE_URL. The key is OPENAI_API_KEY."""
    llm_timeout: float = 60.0
    """Seconds to wait for a reply."""
    seed: int = 0
    dtype: Literal["float32", "float16", "bfloat16"] | None = None

    def planner(self, out: Path, key: str | None = None) -> Planner:
        """The rules, or a language model whose exchanges are kept in the output folder."""
        from dpt.methods.sld.planner import LLMPlanner, Recorded, RulePlanner, open_chat

        if self.llm == "rules":
            if self.llm_model or self.llm_url:
                fail("--llm_model and --llm_url have no effect with --llm rules: give --llm openai or transformers")
            return RulePlanner()
        chat = open_chat(self.llm, self.llm_model, self.llm_url, key, self.llm_timeout)
        cache = None if self.llm == "replay" else out / "llm_cache"
        return LLMPlanner(Recorded(chat, cache, out / "llm.jsonl"))

    def open(
        self, engine: EngineSettings, loop: LoopSettings, planner: Planner, queries: DetectConfig = QUERIES
    ) -> Corrector:
        from dpt.backbone import open_backbone
        from dpt.detect.masks import open_segmenter
        from dpt.detect.registry import open_detector
        from dpt.embedded import model_location
        from dpt.generation_defaults import generation_defaults
        from dpt.methods.sld.detecting import check_readings
        from dpt.methods.sld.method import Corrector, default_masks, default_readings
        from dpt.methods.sld.pipelines import Refiner, open_pipeline, parse_editor, pipeline_identity

        readings = default_readings(self.detector) if self.readings is None else self.readings
        check_readings(readings)
        chosen = parse_editor(self.editor)
        editor = chosen and (chosen[0], open_pipeline(chosen[1], chosen[0], self.dtype), pipeline_identity(chosen[1]))
        refiner = None
        if self.refiner is not None:
            pipeline = open_pipeline(self.refiner, "refine", self.dtype)
            refiner = Refiner(pipeline, pipeline_identity(self.refiner), self.refiner_strength)
        backbone = open_backbone(model_location(self.pretrained_model_name_or_path), dtype=self.dtype)
        scale = self.guidance_scale
        if scale is None:
            scale = generation_defaults(backbone.folder.path).guidance_scale
        masks = self.masks or default_masks(self.detector)
        detector = open_detector(self.detector, queries)
        segmenter = open_segmenter(masks)
        return Corrector(
            backbone, detector, segmenter, engine, loop, scale, queries, planner, readings, editor, refiner
        )


def read_picture(file: Path) -> Image:
    """Read an image as RGB, upright, in its own size."""
    import numpy as np

    from dpt.data.images import read_image

    picture, _ = read_image(file)
    if min(picture.size) < SMALLEST_SIDE:
        size = "x".join(map(str, picture.size))
        raise BrokenImageError.of(file, f"it is {size} pixels, and edits need at least {SMALLEST_SIDE} a side")
    return np.asarray(picture)


def inputs_of(image: Image, text: str, seed: int, corrector: Corrector) -> dict[str, Any]:
    """All that a result depends on; the report records it."""
    return {
        "picture": hashlib.sha256(image.tobytes()).hexdigest(),
        "text": text,
        "seed": seed,
        "model": corrector.backbone.model_hash,
        "guidance_scale": corrector.guidance_scale,
        **corrector.identity,
    }


def is_done(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether the folder holds the result for these inputs; another result is not overwritten."""
    from dpt.methods.sld.record import REPORT
    from dpt.untrusted import read_json_object

    report = folder / REPORT
    if not report.exists():
        if folder.exists():
            fail(f"{folder} exists and holds no result of dpt sld: choose another --out")
        return False
    content = read_json_object(report)
    if content.get("status") == "failed":
        return False
    recorded = content.get("inputs")
    if recorded != inputs:
        fail(f"{folder} holds the result of another image, text or setting: choose another --out")
    return True


def with_strength(loop: LoopSettings, strength: float | None) -> LoopSettings:
    if strength is None:
        return loop
    try:
        return replace(loop, strengths=(strength,))
    except UserError:
        fail(f"--strength must be above 0 and at most 1, not {strength}")


Rows = Sequence[Mapping[str, Any]]

Candidates = Sequence[tuple[str, Sequence[bool]]]
"""Category and verdicts of the images of each prompt."""


def read_rows(file: Path, name: str, number: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Finished lines by these two keys; a line that a kill cut off is done again."""
    rows = {}
    for line in read_text(file).splitlines() if file.exists() else ():
        try:
            row = parse_json(line)
            rows[str(row[name]), int(row[number])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def page(rows: Rows, calls_per_image: int, name: str, candidates: Candidates = ()) -> str:
    """The table by category, and the totals in sentences."""
    base = name.removesuffix("-sld")
    head = f"| category | {base} | {base} + SLD | right that became wrong | calls more per image | per wrong image |"
    lines = [head, "|---|---|---|---|---|---|"]
    categories = list(dict.fromkeys(row["category"] for row in rows))
    for category in (*categories, "all"):
        lines.append(_line(category, [row for row in rows if category in (row["category"], "all")]))
    lines += ["", *_sentences(rows, calls_per_image)]
    if candidates:
        lines += ["", *_best_of(rows, calls_per_image, base, candidates)]
    return "\n".join(lines) + "\n"


EDITS = ("delete", "move", "add", "make")
"""The first words of plans; "make red circle #1 a blue circle" recolours."""


def examples(rows: Rows) -> list[Mapping[str, Any]]:
    """For each edit the first image that it alone made right, and one where a round made several kinds at once."""
    single: dict[str, Mapping[str, Any]] = {}
    several = None
    for row in rows:
        if row["before"] or not row["after"] or len(row["rounds"]) != 2 or row["rounds"][1]["action"] != "edit":
            continue
        plan = row["rounds"][1]["plan"]
        words = {edit.split()[0] for edit in plan}
        if any("unreadable" in edit for edit in plan):
            continue
        if len(plan) == 1:
            single.setdefault(plan[0].split()[0], row)
        elif len(words) > 2 and several is None:
            several = row
    found = [single[word] for word in EDITS if word in single]
    return found if several is None else [*found, several]


def _line(category: str, rows: Rows) -> str:
    right = [row for row in rows if row["before"]]
    wrong = [row for row in rows if not row["before"]]
    cells = [
        _share(rows, "before"),
        _share(rows, "after"),
        f"{sum(not row['after'] for row in right)} of {len(right)}",
        f"{_mean(rows, 'calls'):.0f}",
        f"{_mean(wrong, 'calls'):.0f}",
    ]
    return f"| {category} | {' | '.join(cells)} |"


def _sentences(rows: Rows, calls_per_image: int) -> list[str]:
    right = [row for row in rows if row["before"]]
    broken = Share(sum(not row["after"] for row in right), len(right))
    gated = Share(sum(row["before"] or row["after"] for row in rows), len(rows))
    false = Share(sum(row["status"] == "right" and not row["after"] for row in rows), len(rows))
    by_rounds = [sum(row["after"] and row.get("best_round") == n for row in rows) for n in range(1, 4)]
    failed = sum(row["status"] == "failed" for row in rows)
    lines = [
        f"- {len(rows)} images. An image takes {calls_per_image} calls of the network; SLD took "
        f"{_mean(rows, 'calls'):.0f} more on average, and {_mean(rows, 'seconds'):.2f} seconds.",
        f"- Right images that became wrong: {broken} %.",
        f"- If only images that the judge rejects were corrected (gated): {gated} % right.",
        f"- Called right by the loop, and wrong by the judge: {false} %.",
        f"- Right after one round: {by_rounds[0]}, two: {by_rounds[1]}, three: {by_rounds[2]}.",
    ]
    return [*lines, f"- Could not be corrected: {failed}."] if failed else lines


def _best_of(rows: Rows, calls_per_image: int, base: str, candidates: Candidates) -> list[str]:
    """Rates of the best of n images: right if any of the first n is."""
    most = max(len(verdicts) for _, verdicts in candidates)
    equal = 1 + _mean(rows, "calls") / calls_per_image
    categories = list(dict.fromkeys(category for category, _ in candidates))
    lines = [
        f"The best of n images of {base}, chosen by the judge ({len(candidates)} prompts). SLD cost as much as "
        f"n = {equal:.2f}, so n = {ceil(equal)} is the comparison at equal calls.",
        "",
        f"| n | {' | '.join((*categories, 'all'))} | calls per image |",
        f"|---|{'---|' * (len(categories) + 2)}",
    ]
    for n in range(1, most + 1):
        cells = []
        for category in (*categories, "all"):
            own = [verdicts for name, verdicts in candidates if category in (name, "all")]
            cells.append(str(Share(sum(any(v[:n]) for v in own), len(own))))
        lines.append(f"| {n} | {' | '.join(cells)} | {n * calls_per_image} |")
    return lines


def _share(rows: Rows, key: str) -> str:
    return str(Share(sum(bool(row[key]) for row in rows), len(rows)))


def _mean(rows: Rows, key: str) -> float:
    return sum(row[key] for row in rows) / max(1, len(rows))
