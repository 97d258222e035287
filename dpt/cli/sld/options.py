"""The flags that the commands of `dpt sld` share, and what they open."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.embedded import EMBEDDED
from dpt.errors import BrokenImageError, UserError, fail
from dpt.methods.sld.detecting import QUERIES
from dpt.methods.sld.settings import EngineSettings, LoopSettings

if TYPE_CHECKING:
    from dpt.claims.detections import DetectConfig
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
        from dpt.methods.sld.llm import Recorded, open_chat
        from dpt.methods.sld.planner import LLMPlanner, RulePlanner

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
        from dpt.methods.sld.method import Corrector, default_masks, default_readings
        from dpt.methods.sld.pipelines import Refiner, open_pipeline, parse_editor, pipeline_identity
        from dpt.methods.sld.readings import check_readings

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
