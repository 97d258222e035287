"""`dpt prefer check`: preference data before training, and how often a scorer agrees with the choices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dpt.errors import fail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpt.data.preference.records import PreferenceRecord


@dataclass(frozen=True)
class PreferCheckOptions:
    """Count what preference files hold and what is wrong with them; with --scorer, measure how well it predicts them.

    Exit code 2 if an image is missing or broken, or a user or a prompt is in two of the files.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """preference_train.json, preference_test.json, HPDv2, or pairs with the fields of Pick-a-Pic."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Default: preference_images beside each file."""
    decode: bool = False
    """Also read the pixels of every image: finds truncated files, and takes long."""
    scorer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER|HUB_ID|FILE")] = ()
    """Measure top-1 and pairwise accuracy of these on the last file."""
    clip: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = None
    """The CLIP that a file of weights belongs to; also supplies a missing processor."""


def check(options: PreferCheckOptions) -> None:
    from dpt.data.preference.check import check_preferences, leakage
    from dpt.data.preference.records import read_preferences

    if not options.files:
        fail("name the files to check, such as preference_train.json")
    parts = [read_preferences(file) for file in options.files]
    faults: list[str] = []
    for file, records in zip(options.files, parts, strict=True):
        report = check_preferences(records, folder_of(options, file), options.decode)
        print("\n  ".join([f"{file}:", *report.lines]))
        faults += [f"{len(report.broken)} images of {file}"] if report.broken else []
    for earlier, records in enumerate(parts[:-1]):
        if sentence := leakage(records, parts[-1]):
            print(f"{options.files[earlier]} and {options.files[-1]}: {sentence}")
            faults.append("the split into training and test")
    for name in options.scorer:
        print(measure(name, options, parts[-1]))
    if faults:
        fail(f"check {' and '.join(faults)} before training")


def folder_of(options: PreferCheckOptions, file: Path) -> Path:
    return file.parent / "preference_images" if options.images is None else options.images


def measure(name: str, options: PreferCheckOptions, records: Sequence[PreferenceRecord]) -> str:
    """Top-1 and pairwise accuracy of a scorer, each beside its chance; intervals are over records."""
    import numpy as np
    from tqdm import tqdm

    from dpt.data.images import read_image
    from dpt.embedded import clip_location
    from dpt.intervals import bootstrap, bootstrap_ratio
    from dpt.objectives.preference import agreement
    from dpt.score.preference import open_preference_model

    folder = folder_of(options, options.files[-1])
    model = open_preference_model(clip_location(name), options.clip)
    results = []
    for record in tqdm(records, desc="scoring", unit="record", leave=False):
        images = [np.asarray(read_image(folder / picture, folder)[0]) for picture in record.pictures]
        results.append(agreement(model.scores(images, [record.prompt] * len(images)), record.ranks))
    top1 = bootstrap([[result.top1 for result in results]], (0, 1))
    pairwise = bootstrap_ratio([result.ordered for result in results], [result.pairs for result in results])
    chance = sum(result.chance for result in results) / len(results)
    return (
        f"{model.identity}: top-1 {top1.percent} %, by chance {100 * chance:.1f} %; pairwise {pairwise.percent} %, by "
        f"chance 50.0 %; {len(results)} records"
    )
