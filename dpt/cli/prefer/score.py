"""`dpt prefer score` and `dpt prefer select`: score images, and keep the clear winners and losers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dpt.data.preference.source import NEGATIVE, NEGATIVE_PREFIX, POSITIVE
from dpt.distributed import processes, take_own_gpu
from dpt.embedded import clip_location
from dpt.errors import UserError, fail
from dpt.score.folder_scores import SelectedPicture, SelectionConfig


@dataclass(frozen=True)
class PreferScoreOptions:
    """Score each image of a folder: 100 times the cosine of image and prompt. The same command resumes.

    The folder has metadata.jsonl or a text file beside each image. Launched processes share the work.
    """

    images: Annotated[Path, tyro.conf.arg(metavar="FOLDER", aliases=["--image_folder"])]
    scorer: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID|FILE", aliases=["--hpc", "--clip_checkpoint"])]
    """A classifier of `dpt prefer train`, any CLIP or SigLIP, PickScore; or hpc.pth, HPS v2 or v2.1 with --clip."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Default: scores.jsonl in the folder of images."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """The CLIP model that a weights file belongs to; also supplies a missing processor."""
    meta_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A JSON list of {"file_name", "caption"} instead of the folder's captions, as for the published evaluate_hps."""
    corrupt_budget: int = 0
    """Number of unreadable images to skip before failing."""


def score(options: PreferScoreOptions) -> None:
    from tqdm import tqdm

    from dpt.score.folder_scores import prompted_pictures, score_pictures
    from dpt.score.preference import open_preference_model

    pictures = prompted_pictures(options.images, options.meta_file)
    out = options.images / "scores.jsonl" if options.out is None else options.out
    with processes() as group:
        take_own_gpu()
        model = open_preference_model(clip_location(options.scorer), options.clip)
        with tqdm(total=len(pictures), desc="scoring", unit="image", disable=not group.is_main) as bar:
            result = score_pictures(pictures, options.images, model, out, group, bar.update)
        if not group.is_main:
            return
    if len(result.skipped) > options.corrupt_budget:
        first = result.skipped[0]
        raise UserError(f"{len(result.skipped)} images cannot be read, more than --corrupt_budget allows; {first}")
    cut = sum(model.inputs.is_cut(prompt) for prompt in {picture.prompt for picture in pictures})
    blurry = sum(picture.blurry for picture in result.scored)
    scores = [picture.score for picture in result.scored]
    mean = sum(scores) / len(scores) if scores else 0.0
    print(f"mean score {mean:.4f} ({mean / 100:.6f} as a cosine) of {len(scores)} images; {blurry} are blurry")
    if result.skipped:
        print(f"{len(result.skipped)} images cannot be read and have no score; {result.skipped[0]}")
    if cut:
        print(f"{cut} prompts are longer than {model.inputs.length} tokens: only their beginning is scored")
    print(f"scores are in {out}; next: dpt prefer select --scores {out} --images {options.images} --out FOLDER")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class SelectOptions:
    """Copy the clear winners and losers of each prompt into a folder with metadata.jsonl for training.

    Of n images the best is selected if its softmax probability exceeds 2/n, the worst likewise with negated scores.
    """

    scores: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The scores.jsonl of `dpt prefer score`."""
    images: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """The folder of the scored images."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    negative_prefix: str = NEGATIVE_PREFIX
    """Put in front of the prompt of a loser to make its caption."""
    weights: Literal["equal", "confidence"] = "equal"
    """The weight of an image in the denoising loss: 1, or its confidence."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)


def select(options: SelectOptions) -> None:
    from dpt.files import atomic_folder
    from dpt.score.folder_scores import read_scores
    from dpt.score.folder_scores import select as select_pictures

    pictures = list(read_scores(options.scores))
    if nameless := [picture.id for picture in pictures if not picture.file_name]:
        fail(f"{options.scores} has no file_name for the image with id {nameless[0]}: score it with dpt prefer score")
    selected = select_pictures(pictures, options.selection)
    counts = {kind: sum(chosen.type == kind for chosen in selected) for kind in (POSITIVE, NEGATIVE)}
    prompts = len({picture.prompt for picture in pictures})
    if not selected:
        fail(
            f"no image of the {prompts} prompts in {options.scores} is a clear winner or loser: lower --temperature "
            f"from {options.selection.temperature:g}, or sample more images per prompt"
        )
    with atomic_folder(options.out) as work:
        write_selected(work, options, selected)
    blurry = sum(picture.blurry for picture in pictures)
    print(
        f"{counts[POSITIVE]} winners and {counts[NEGATIVE]} losers of {len(pictures)} images for {prompts} prompts "
        f"({blurry} blurry) are in {options.out}"
    )


def write_selected(folder: Path, options: SelectOptions, selected: Sequence[SelectedPicture]) -> None:
    from dpt.data.folder import METADATA
    from dpt.data.preference.source import training_caption

    numbers = dict.fromkeys((POSITIVE, NEGATIVE), 0)
    rows = []
    for kind in numbers:
        (folder / kind).mkdir()
    for chosen in selected:
        source = options.images / chosen.picture.file_name
        name = f"{chosen.type}/{numbers[chosen.type]}{source.suffix}"
        numbers[chosen.type] += 1
        if not source.is_file():
            raise UserError(f"there is no image {source}, which {options.scores} lists: check --images")
        shutil.copyfile(source, folder / name)
        rows.append({
            "id": chosen.picture.id,
            "file_name": name,
            "caption": training_caption(chosen.picture.prompt, chosen.type, options.negative_prefix),
            "type": chosen.type,
            "confidence": round(chosen.confidence, 6),
            "weight": 1.0 if options.weights == "equal" else round(chosen.confidence, 6),
            "batch_size": chosen.batch_size,
        })  # fmt: skip
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    (folder / METADATA).write_text(text, encoding="utf-8")
