"""`dpt scenes …`: measure the oracle on rendered scenes, and export scenes in the published formats."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from dpt.claims.judge import DetectConfig
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, WORLDS, World, make_scene
from dpt.detect.accuracy import (
    AccuracyRow,
    CaptionRow,
    UnnameableRow,
    caption_rows,
    count_detections,
    open_round_trip,
    refusals,
)
from dpt.detect.base import Detector
from dpt.detect.oracle.oracle import Oracle
from dpt.detect.registry import ORACLE, open_detector
from dpt.detect.test_images import DEFORMATIONS, DISTURBANCES
from dpt.errors import fail

ROUND_TRIP = "VAE round trip"


@dataclass(frozen=True)
class SceneCheckOptions:
    """Measure how well the oracle or the reader reads fresh scenes: clean, disturbed, and after a VAE."""

    num: int = 1000
    """Scenes per row of the table."""
    seed: int = 7
    world: str = "full"
    """full or pocket."""
    vae: Path | None = None
    """A diffusers model folder: adds a row for images encoded and decoded by its VAE."""
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Also write the counts to this file."""
    detector: Annotated[str, tyro.conf.arg(metavar="oracle|noisy-oracle|reader|FOLDER")] = ORACLE
    """The detector to measure; all but the oracle read the pocket world alone."""


def check(options: SceneCheckOptions) -> None:
    world = _valid_world(options)
    round_trip = None if options.vae is None else open_round_trip(options.vae)
    detector = _detector(options, world)
    scenes = [make_scene(options.seed, index, world) for index in range(options.num)]
    images = [render(scene) for scene in scenes]

    rows: list[AccuracyRow] = []
    for name, disturb in tqdm(DISTURBANCES.items(), desc="reading", leave=False):
        disturbed = [disturb(image, options.seed + index) for index, image in enumerate(images)]
        rows.append(AccuracyRow(name, count_detections(scenes, detector.detect(disturbed))))
    captions = {"clean": caption_rows(scenes, detector.detect(images), world, options.seed)}
    if round_trip is not None:
        decoded = detector.detect(round_trip(images))
        rows.append(AccuracyRow(ROUND_TRIP, count_detections(scenes, decoded)))
        captions[ROUND_TRIP] = caption_rows(scenes, decoded, world, options.seed)
    unnamed = [
        UnnameableRow(name, *refusals(detector.detect([d(options.seed, i, world) for i in range(options.num)])))
        for name, d in tqdm(DEFORMATIONS.items(), desc="reading what has no name", leave=False)
    ]

    print(f"{detector.identity} on {options.num} scenes of the {options.world} world, seed {options.seed}\n")
    print("\n".join([AccuracyRow.heading(), *(str(row) for row in rows), ""]))
    print("\n".join([UnnameableRow.heading(), *(str(row) for row in unnamed)]))
    if options.detector != ORACLE:
        for name, judged in captions.items():
            print("\n".join([f"\n{CaptionRow.heading()}  ({name})", *(str(row) for row in judged)]))
    if options.json_file is not None:
        _write_json(options, detector.identity, rows, unnamed, captions)


def _detector(options: SceneCheckOptions, world: World) -> Detector:
    if options.detector == ORACLE:
        return Oracle(world)
    if world != POCKET_WORLD:
        fail(f"--detector {options.detector} reads scenes of --world pocket alone")
    return open_detector(options.detector, DetectConfig("", 0.0))


def _valid_world(options: SceneCheckOptions) -> World:
    if options.num < 1:
        fail(f"--num must be at least 1, not {options.num}")
    if options.world not in WORLDS:
        fail(f"there is no world {options.world!r}; --world is one of {', '.join(WORLDS)}")
    if options.json_file is not None and not options.json_file.parent.is_dir():
        fail(f"the folder of --json {options.json_file} does not exist")
    if options.json_file is not None and options.json_file.is_dir():
        fail(f"--json {options.json_file} is a folder: give a file in it, as {options.json_file / 'oracle.json'}")
    if options.vae is not None and not options.vae.is_dir():
        fail(f"--vae {options.vae} is not a folder")
    return WORLDS[options.world]


def _write_json(
    options: SceneCheckOptions,
    identity: str,
    rows: list[AccuracyRow],
    unnamed: list[UnnameableRow],
    captions: dict[str, list[CaptionRow]],
) -> None:
    assert options.json_file is not None
    content = {
        "detector": identity,
        "world": options.world,
        "seed": options.seed,
        "num": options.num,
        "vae": None if options.vae is None else str(options.vae),
        "scenes": {row.name: asdict(row.counts) for row in rows},
        "without_a_name": {row.name: row.counts() for row in unnamed},
        "captions": {name: [asdict(row) for row in judged] for name, judged in captions.items()},
    }
    try:
        options.json_file.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        fail(f"--json {options.json_file} cannot be written: {error.strerror}")


@dataclass(frozen=True)
class SceneExportOptions:
    """Write rendered scenes, their captions, expressions and hard negatives in the published formats."""

    out: Path
    """The data folder to create. It must not exist yet, or be empty."""
    num: int
    """Training scenes."""
    seed: int = 0
    world: str = "pocket"
    """pocket or full."""
    val: int | None = None
    """Scenes for each of: validation captions, validation expressions, test expressions. Default: a tenth of --num."""
    format: str = "jpg"
    """jpg (as published) or png."""


def export(options: SceneExportOptions) -> None:
    from dpt.data.scenes.export import RANGE, Plan, export_scenes
    from dpt.data.scenes.world import WORLDS
    from dpt.errors import fail

    val = max(1, options.num // 10) if options.val is None else options.val
    for flag, number in (("num", options.num), ("val", val)):
        if not 1 <= number <= RANGE:
            fail(f"--{flag} must be between 1 and {RANGE}, not {number}")
    if options.world not in WORLDS:
        fail(f"there is no world {options.world!r}; the worlds are {', '.join(sorted(WORLDS))}")
    if options.format not in ("jpg", "png"):
        fail(f"--format must be jpg or png, not {options.format!r}")
    export_scenes(Plan(options.num, val, options.seed, options.world, options.format), options.out)
    print(f"wrote {options.out}: its manifest.json lists the contents")
