"""Sample prompts with variants of the sampler; write images, contact sheets, traces and the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from dpt.backbone import Condition
from dpt.backbone.rng import derived_seed
from dpt.claims.facts import Prompt
from dpt.claims.judge import judge
from dpt.claims.words import parse_caption
from dpt.cli.common.console import versions
from dpt.cli.txt2img.model import TunedModel
from dpt.cli.txt2img.options import Options
from dpt.data.images import to_pil
from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.oracle.oracle import Oracle
from dpt.evaluation.contact_sheet import contact_sheet
from dpt.sampling.draw import (
    INITIAL_NOISE,
    Candidate,
    Request,
    SampledBatch,
    SamplingSettings,
    best,
    calls_per_picture,
    draw_latents,
    refine_batch,
    scored,
)
from dpt.sampling.guidance import Trace
from dpt.sampling.options import NO_CORRECTION, OWN_SIZE
from dpt.score.matching import Scorer

if TYPE_CHECKING:
    from dpt.sampling.guidance import StepHook


RIGHT = "right"
"""The oracle's verdict on an image that shows its prompt."""

TRACE_COLUMNS = 6
"""Number of steps at which a trace shows the predicted x0."""


@dataclass(frozen=True)
class SamplingVariant:
    """One column of a comparison: the settings, and whether the LoRA is on."""

    name: str
    settings: SamplingSettings
    lora: bool = True


@dataclass(frozen=True)
class ImageRecord:
    """One written image, as the manifest records it."""

    file: str
    prompt: int
    index: int
    method: str = ""
    score: float | None = None
    verdict: str | None = None


def variants_for(options: Options, settings: SamplingSettings, tuned: TunedModel) -> list[SamplingVariant]:
    """One variant, or with --compare: the base model, the tuned model, and the corrected one."""
    if not options.compare:
        return [SamplingVariant("", settings)]
    plain = replace(settings, correction=NO_CORRECTION)
    variants = [SamplingVariant("base", plain, lora=False)]
    if tuned.has_lora:
        variants.append(SamplingVariant("tuned", plain))
    if settings.correction.on:
        variants.append(SamplingVariant("tuned and corrected" if tuned.has_lora else "corrected", settings))
    return variants


class ImageWriter:
    """Samples prompts with every variant from the same noise, and writes the images."""

    def __init__(
        self,
        options: Options,
        tuned: TunedModel,
        variants: Sequence[SamplingVariant],
        batch_size: int,
        folder: Path,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.options, self.tuned, self.variants = options, tuned, variants
        self.batch_size, self.folder, self.on_step = batch_size, folder, on_step
        self.numbered = options.prompts_file is not None
        adapter = tuned.adapter
        scores = options.compare or options.trace or options.n_candidates is not None
        self.scorer = Scorer(tuned.backbone, adapter) if scores and adapter is not None else None
        self.traces: list[Trace] = []

    def write(self, number: int, prompt: str) -> list[ImageRecord]:
        """Sample and write all images of a prompt, ordered as a sheet with one column per variant."""
        self.traces.clear()
        columns = [
            [
                self._save(number, prompt, place, image, variant)
                for place, image in enumerate(self._sample(prompt, variant))
            ]
            for variant in self.variants
        ]
        return [entry for row in zip(*columns, strict=True) for entry in row]

    def file_name(self, number: int, ending: str) -> str:
        """The name of a prompt's file; a single prompt needs no number."""
        return f"{number:04d}-{ending}" if self.numbered else ending

    def _sample(self, prompt: str, variant: SamplingVariant) -> Iterator[tuple[int, Tensor, float | None]]:
        """Index, image and score of each image to keep."""
        options, backbone = self.options, self.tuned.backbone
        negative = options.guidance.negative_prompt or ""
        requests = [Request(prompt, options.seed, k, negative) for k in range(options.num_candidates)]
        with self.tuned.with_lora(variant.lora):
            batches: Iterable[SampledBatch] = draw_latents(
                backbone,
                requests,
                variant.settings,
                adapter=self.tuned.adapter,
                batch_size=self.batch_size,
                on_step=self.on_step,
                make_hook=self._trace if options.trace else None,
            )
            if (refiner := self.tuned.refiner) is not None:
                strength = options.refiner.refiner_strength
                batches = (refine_batch(refiner, batch, variant.settings, strength) for batch in batches)
            if self.scorer is None or options.trace:
                for batch in batches:
                    images = zip(batch.requests, batch.decode(backbone), strict=True)
                    yield from ((request.index, image, None) for request, image in images)
                return
            batches = list(batches)
        # Scored outside the block: the adapter was trained with the LoRA on, and scores every variant that way.
        for candidate in self._kept(scored(batches, self.scorer)):
            yield candidate.request.index, candidate.decode(backbone), candidate.score

    def _kept(self, candidates: Iterator[Candidate]) -> Iterable[Candidate]:
        return candidates if self.options.n_candidates is None else best(candidates, self.options.n_samples)

    def _save(
        self, number: int, prompt: str, place: int, sampled: tuple[int, Tensor, float | None], variant: SamplingVariant
    ) -> ImageRecord:
        index, values, score = sampled
        image = to_pil(values)
        column = f"{variant.name.replace(' ', '-')}-" if variant.name else ""
        file = self.file_name(number, f"{column}{place:03d}.png")
        image.save(self.folder / file)
        verdict = oracle_verdict(image, prompt) if self.options.compare else None
        return ImageRecord(file, number, index, variant.name, score, verdict)

    def _trace(self, requests: Sequence[Request], text: Condition) -> StepHook:
        calls = calls_per_picture(self.tuned.backbone, self.variants[0].settings)
        shown = {round(at) for at in np.linspace(0, calls - 1, TRACE_COLUMNS)} if not self.traces else set()
        self.traces.append(Trace(self.tuned.backbone, text, self.scorer, shown))
        return self.traces[-1]


def oracle_verdict(image: Image.Image, prompt: str) -> str | None:
    """The oracle's verdict on an image of a scene; None for prompts and image sizes it does not know."""
    world = POCKET_WORLD
    description = parse_caption(prompt, world)
    if description is None or image.size != (world.image_size, world.image_size):
        return None
    claims = Prompt("", "", prompt, description.facts, closed=description.absent is None)
    fault = judge(claims, Oracle(world).read(np.asarray(image))).first_fault
    return RIGHT if fault is None else f"not {fault.text}"


SHEET = "contact_sheet.png"

MAX_ON_SHEET = 64


def write_sheet(folder: Path, name: str, entries: Sequence[ImageRecord], columns: int, titles: Sequence[str]) -> None:
    """A contact sheet of written images, with one title or with each image's prompt."""
    shown = entries[:MAX_ON_SHEET]
    images = [Image.open(folder / entry.file) for entry in shown]
    several = len(titles) > 1
    captions = [caption(entry, titles[entry.prompt] if several else "") for entry in shown]
    title = titles[0]
    if several:
        title = f"the first {len(shown)} of {len(entries)} images" if len(shown) < len(entries) else ""
    sheet = contact_sheet(images, captions, columns=columns if columns > 1 else None, title=title)
    sheet.save(folder / name)


def caption(entry: ImageRecord, prompt: str = "") -> str:
    name = prompt or entry.method or str(entry.index)
    score = None if entry.score is None else f"ITM {entry.score:.3f}"
    return ", ".join(part for part in (name, score, entry.verdict) if part)


def write_record(
    folder: Path,
    options: Options,
    tuned: TunedModel,
    settings: SamplingSettings,
    variants: Sequence[SamplingVariant],
    prompts: Sequence[str],
    entries: Sequence[ImageRecord],
    batch_size: int,
    warnings: Sequence[str],
) -> None:
    """Write manifest.json: everything needed to sample these images again."""
    backbone = tuned.backbone
    height, width = (side * backbone.vae_scale_factor for side in backbone.latent_size(*options.size.sides))
    numbered = options.prompts_file is not None
    record: dict[str, Any] = {
        **({"prompts": list(prompts)} if numbered else {"prompt": prompts[0]}),
        "negative_prompt": options.guidance.negative_prompt,
        "seed": options.seed,
        "images": [_image_record(entry, options.seed, numbered) for entry in entries],
        "settings": {**_settings(settings), "height": height, "width": width},
        "model": {
            "name": options.model.pretrained_model_name_or_path,
            "revision": options.model.revision,
            "sha256": backbone.model_hash,
            "prediction_type": backbone.noise.prediction_type,
        },
        **({} if options.model.vae is None else {"vae": options.model.vae}),
        **({} if options.model.quantize is None else {"quantize": options.model.quantize}),
        **(
            {} if tuned.refiner is None else {"refiner": asdict(options.refiner) | {"sha256": tuned.refiner.model_hash}}
        ),
        "checkpoint": tuned.record(),
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "changed_for_speed": list(tuned.speedups),
        "warnings": list(warnings),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if options.compare:
        record["methods"] = [
            {"name": variant.name, "lora": variant.lora and tuned.has_lora, "corrected": variant.settings.correction.on}
            for variant in variants
        ]
    if options.n_candidates is not None:
        record["n_candidates"] = options.n_candidates
    text = json.dumps(record, indent=2, ensure_ascii=False)
    # A path may hold bytes that are not UTF-8: they become \\udcXX, which JSON can hold.
    (folder / "manifest.json").write_bytes(f"{text}\n".encode("utf-8", "backslashreplace"))


def _settings(settings: SamplingSettings) -> dict[str, Any]:
    """Without the size conditions, unless some were given."""
    return {name: value for name, value in asdict(settings).items() if name != "sizes" or settings.sizes != OWN_SIZE}


def _image_record(entry: ImageRecord, seed: int, numbered: bool) -> dict[str, Any]:
    record = {key: value for key, value in asdict(entry).items() if value not in (None, "")}
    if not numbered:
        record.pop("prompt")
    return {**record, "noise_seed": derived_seed(seed, entry.index, INITIAL_NOISE)}


def write_trace(file: Path, tuned: TunedModel, traces: Sequence[Trace], title: str) -> None:
    """Plot the matching score at each call, one line per image, above the first image's predicted x0."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [step for step in traces[0].steps if step.x0_pred is not None]
    figure = pyplot.figure(figsize=(11, 6), layout="constrained")
    grid = figure.add_gridspec(2, len(shown), height_ratios=(2, 1))
    axis = figure.add_subplot(grid[0, :])
    if traces[0].scorer is None:
        axis.text(0.5, 0.5, "no adapter, so no score", ha="center", va="center")
        axis.set_axis_off()
    else:
        curves = [curve for trace in traces for curve in zip(*trace.scores, strict=True)]
        for index, scores in enumerate(curves):
            axis.plot(range(1, len(scores) + 1), scores, marker="o", markersize=3, label=f"image {index}")
        axis.set(xlabel="step", ylabel="matching score s(z_t, y)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axis.set_title(title, parse_math=False)
    for column, step in enumerate(shown):
        below = figure.add_subplot(grid[1, column])
        assert step.x0_pred is not None
        image = tuned.backbone.decode_latents(step.x0_pred[:1])[0].detach().cpu()
        below.imshow(to_pil(image))
        below.set_title(f"step {step.index + 1}, t = {step.t:g}", fontsize="small")
        below.set_axis_off()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
