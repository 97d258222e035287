"""Suite hashes are stored with every result: they must not change when code is renamed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.oracle.oracle import Oracle
from dpt.evaluation.suites.registry import load

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "position", "include": [{"class": "couch", "count": 1},
                                    {"class": "tv", "count": 2, "position": ["left of", 0]}],
     "prompt": "a photo of tvs left of a couch"},
    {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}],
     "exclude": [{"class": "car", "count": 3}], "prompt": "a photo of a red car"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("suite", "per_category", "sha256"),
    [
        ("pocket", 2, "3af93d5bc3f9bcec91255c8085c0bef8a858f6c53f90d14cbc504eb36a4d2982"),
        ("pocket", None, "95f9eabfdd97ef56a4927765a98db0b7c10c1728167fb163b6c367957656e692"),
        ("lmd", None, "5b2fe267adef025e15cf40ff595acdc281c0f746cb637bc028b1aad2a5921308"),
        ("sr2d", None, "1f962d736ba68441bf922c1585692bbfc49d3b477da270601e45b6bd1111bec2"),
    ],
)
def test_built_in_suites_keep_their_hash(suite: str, per_category: int | None, sha256: str) -> None:
    assert load(suite, per_category=per_category).hash == sha256


def test_geneval_keeps_its_hash(tmp_path: Path) -> None:
    """Its claims use every renamed class that the built-in suites do not."""
    file = tmp_path / "metadata.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in GENEVAL))
    assert load(f"geneval={file}").hash == "e13dce49c076cb288e306551c802a9c7da444862eaff37f7cc2253a62b092e8f"


def test_the_oracle_keeps_its_identity() -> None:
    assert Oracle(POCKET_WORLD).identity == "oracle v1 536bb85a3c0b"
    assert Oracle().identity == "oracle v1 c9e159b08427"
