"""Contact sheets, traces and the manifest, which a run writes beside its images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from dpt.backbone.rng import derived_seed
from dpt.cli.common.console import versions
from dpt.cli.txt2img.model import TunedModel
from dpt.cli.txt2img.options import Options
from dpt.cli.txt2img.sampling import ImageRecord, SamplingVariant
from dpt.data.images import to_pil
from dpt.evaluation.contact_sheet import contact_sheet
from dpt.sampling.draw import INITIAL_NOISE, SamplingSettings
from dpt.sampling.hooks import Trace
from dpt.sampling.options import OWN_SIZE

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
