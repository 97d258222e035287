"""What a drawing command leaves behind besides the pictures: sheets, traces, and how it was all made."""

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
from dpt.sampling.draw import INITIAL_NOISE, Settings
from dpt.sampling.hooks import Trace

SHEET = "contact_sheet.png"

MOST_ON_A_SHEET = 64


def write_sheet(folder: Path, name: str, entries: Sequence[ImageRecord], columns: int, titles: Sequence[str]) -> None:
    """The pictures of these entries, read back from the folder; with one title, or a prompt for each."""
    shown = entries[:MOST_ON_A_SHEET]
    pictures = [Image.open(folder / one.file) for one in shown]
    several = len(titles) > 1
    captions = [caption(one, titles[one.prompt] if several else "") for one in shown]
    title = titles[0]
    if several:
        title = f"the first {len(shown)} of {len(entries)} pictures" if len(shown) < len(entries) else ""
    sheet = contact_sheet(pictures, captions, columns=columns if columns > 1 else None, title=title)
    sheet.save(folder / name)


def caption(entry: ImageRecord, prompt: str = "") -> str:
    said = prompt or entry.method or str(entry.index)
    score = None if entry.score is None else f"ITM {entry.score:.3f}"
    return ", ".join(part for part in (said, score, entry.verdict) if part)


def write_record(
    folder: Path,
    options: Options,
    trained: TunedModel,
    settings: Settings,
    methods: Sequence[SamplingVariant],
    prompts: Sequence[str],
    entries: Sequence[ImageRecord],
    batch_size: int,
    warnings: Sequence[str],
) -> None:
    """All that is needed to draw these pictures again."""
    backbone = trained.backbone
    height, width = (side * backbone.vae_scale_factor for side in backbone.latent_size(*options.size))
    numbered = options.prompts_file is not None
    record: dict[str, Any] = {
        **({"prompts": list(prompts)} if numbered else {"prompt": prompts[0]}),
        "negative_prompt": options.negative_prompt,
        "seed": options.seed,
        "images": [_told(one, options.seed, numbered) for one in entries],
        "settings": {**asdict(settings), "height": height, "width": width},
        "model": {
            "name": options.pretrained_model_name_or_path,
            "revision": options.revision,
            "sha256": backbone.model_hash,
            "prediction_type": backbone.noise.prediction_type,
        },
        "checkpoint": trained.described(),
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "changed_for_speed": list(trained.sped),
        "warnings": list(warnings),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if options.compare:
        record["methods"] = [{"name": one.name, "lora": one.tuned and trained.has_lora,
                              "corrected": one.settings.correction.on} for one in methods]  # fmt: skip
    if options.n_candidates is not None:
        record["n_candidates"] = options.n_candidates
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / "manifest.json").write_text(f"{text}\n", encoding="utf-8")


def _told(entry: ImageRecord, seed: int, numbered: bool) -> dict[str, Any]:
    told = {key: value for key, value in asdict(entry).items() if value not in (None, "")}
    if not numbered:
        told.pop("prompt")
    return {**told, "noise_seed": derived_seed(seed, entry.index, INITIAL_NOISE)}


def write_trace(file: Path, trained: TunedModel, traces: Sequence[Trace], title: str) -> None:
    """The score at each call, a line a picture; and the first picture as it is foreseen on the way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    foreseen = [moment for moment in traces[0].moments if moment.foreseen is not None]
    figure = pyplot.figure(figsize=(11, 6), layout="constrained")
    grid = figure.add_gridspec(2, len(foreseen), height_ratios=(2, 1))
    axis = figure.add_subplot(grid[0, :])
    if traces[0].scorer is None:
        axis.text(0.5, 0.5, "no adapter, so no score", ha="center", va="center")
        axis.set_axis_off()
    else:
        index = 0
        for trace in traces:
            for scores in zip(*(moment.scores.tolist() for moment in trace.moments if moment.scores is not None),
                              strict=True):  # fmt: skip
                axis.plot(range(1, len(scores) + 1), scores, marker="o", markersize=3, label=f"picture {index}")
                index += 1
        axis.set(xlabel="step", ylabel="matching score s(z_t, y)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axis.set_title(title)
    for column, moment in enumerate(foreseen):
        below = figure.add_subplot(grid[1, column])
        assert moment.foreseen is not None
        image = trained.backbone.decode_latents(moment.foreseen[:1])[0].detach().cpu()
        below.imshow(to_pil(image))
        below.set_title(f"step {moment.index + 1}, t = {moment.t:g}", fontsize="small")
        below.set_axis_off()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
