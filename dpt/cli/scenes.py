"""`dpt scenes …`: what the rendered scenes are for, and how well they can be read back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from dpt.data.scenes.layout import scene
from dpt.data.scenes.render import render
from dpt.data.scenes.world import WORLDS, World
from dpt.errors import fail
from dpt.evaluation.detectors.check import Row, UnnamedRow, refusals, tally
from dpt.evaluation.detectors.deformations import DEFORMATIONS
from dpt.evaluation.detectors.disturbances import DISTURBANCES
from dpt.evaluation.detectors.oracle import Oracle
from dpt.evaluation.detectors.round_trip import open_round_trip


@dataclass(frozen=True)
class CheckOptions:
    """Measure how well the oracle reads fresh scenes: clean, disturbed, and after a VAE."""

    num: int = 1000
    """Scenes per row of the table."""
    seed: int = 7
    world: str = "full"
    """full or pocket."""
    vae: Path | None = None
    """A diffusers model folder: adds a row for pictures encoded and decoded by its VAE."""
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Also write the counts to this file."""


def check(options: CheckOptions) -> None:
    world = _valid(options)
    round_trip = None if options.vae is None else open_round_trip(options.vae)
    oracle = Oracle(world)
    scenes = [scene(options.seed, index, world) for index in range(options.num)]
    images = [render(each) for each in scenes]

    rows: list[Row] = []
    for name, disturb in tqdm(DISTURBANCES.items(), desc="reading", leave=False):
        disturbed = [disturb(image, options.seed + index) for index, image in enumerate(images)]
        rows.append(Row(name, tally(scenes, oracle.detect(disturbed))))
    if round_trip is not None:
        rows.append(Row("VAE round trip", tally(scenes, oracle.detect(round_trip(images)))))
    unnamed = [
        UnnamedRow(name, *refusals(oracle.detect([d(options.seed, i, world) for i in range(options.num)])))
        for name, d in tqdm(DEFORMATIONS.items(), desc="reading what has no name", leave=False)
    ]

    print(f"{oracle.identity} on {options.num} scenes of the {options.world} world, seed {options.seed}\n")
    print("\n".join([Row.heading(), *(str(row) for row in rows), ""]))
    print("\n".join([UnnamedRow.heading(), *(str(row) for row in unnamed)]))
    if options.json_file is not None:
        _write_json(options, oracle.identity, rows, unnamed)


def _valid(options: CheckOptions) -> World:
    if options.num < 1:
        fail(f"--num must be at least 1, not {options.num}")
    if options.world not in WORLDS:
        fail(f"there is no world {options.world!r}; --world is one of {', '.join(WORLDS)}")
    if options.json_file is not None and not options.json_file.parent.is_dir():
        fail(f"the folder of --json {options.json_file} does not exist")
    if options.vae is not None and not options.vae.is_dir():
        fail(f"--vae {options.vae} is not a folder")
    return WORLDS[options.world]


def _write_json(options: CheckOptions, identity: str, rows: list[Row], unnamed: list[UnnamedRow]) -> None:
    assert options.json_file is not None
    content = {
        "detector": identity,
        "world": options.world,
        "seed": options.seed,
        "num": options.num,
        "vae": None if options.vae is None else str(options.vae),
        "scenes": {row.name: asdict(row.tally) for row in rows},
        "without_a_name": {row.name: row.counts() for row in unnamed},
    }
    try:
        options.json_file.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        fail(f"--json {options.json_file} cannot be written: {error.strerror}")
