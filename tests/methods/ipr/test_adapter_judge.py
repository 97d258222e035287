"""The judge without a detector: captions that differ in one fact, and the best-scoring of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpt.claims.caption_edits import alternatives
from dpt.claims.facts import Prompt
from dpt.claims.judge import judge
from dpt.claims.parse import parse_prompt
from dpt.claims.relabel import RelabelConfig
from dpt.data.scenes.world import POCKET_WORLD
from dpt.detect.oracle.oracle import Oracle
from dpt.evaluation.suites import lmd, sr2d
from dpt.evaluation.suites.pocket import pocket_prompts
from dpt.methods.ipr.config import PromptConfig, SampleConfig, WeightConfig
from dpt.methods.ipr.pictures import AdapterJudge, relabel_by_adapter
from dpt.methods.ipr.prompts import load_prompts
from dpt.methods.ipr.sampling import ModelState, sample
from tests.methods.ipr.painted import painter, tiny_model

__all__ = ["painter", "tiny_model"]


def texts(prompt: Prompt) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for other in alternatives(prompt):
        found.setdefault(other.reason, []).append(other.text)
    return found


def parsed(text: str) -> Prompt:
    return parse_prompt(text).claims


def test_alternatives_change_one_fact() -> None:
    assert texts(parsed("a red circle above a blue square")) == {
        "location": [f"a red circle {words} a blue square" for words in ("to the left of", "to the right of", "below")],
        "colour": ["a blue circle above a red square"],
        "number": ["a red circle", "a blue square"],
    }
    assert texts(parsed("two green crosses")) == {
        "number": ["a green cross", "three green crosses", "four green crosses"]
    }
    assert texts(parsed("a cyan circle without crosses"))["number"][-1] == "a cyan circle and a cross"
    assert alternatives(parsed("A realistic photo of a scene without cars")) == ()


def test_no_alternative_means_the_same_as_its_prompt() -> None:
    prompts = [p for c in ("spatial", "binding", "count", "negation", "complex") for p in pocket_prompts(c, 30)]
    for prompt in [*prompts, *lmd.suite().prompts[100::9], *sr2d.suite().prompts[:: 31680 // 60]]:
        for other in alternatives(prompt):
            assert other.text != prompt.text
            assert parse_prompt(other.text).facts != parse_prompt(prompt.text).facts, other.text


@dataclass
class OracleScorer:
    """Scores 1 for a caption that the oracle confirms, 0 for any other."""

    identity = "a scorer"
    calls: int = 0

    def scores(self, images: Sequence[Any], captions: Sequence[str]) -> list[float]:
        self.calls += 1
        oracle = Oracle(POCKET_WORLD)
        return [
            float(judge(parse_prompt(caption).claims, oracle.read(np.asarray(image))).passed)
            for image, caption in zip(images, captions, strict=True)
        ]


@pytest.mark.usefixtures("painter")
def test_the_best_scoring_caption_is_the_new_one(tiny_model: Path, tmp_path: Path) -> None:
    prompts = load_prompts(PromptConfig("pocket", ("spatial",), prompts=8, held_out=0))[0].prompts
    sample(prompts, ModelState(str(tiny_model)), SampleConfig(per_prompt=2, num_timesteps=2), tmp_path / "images")
    scorer = OracleScorer()
    judge_ = AdapterJudge(scorer)  # type: ignore[arg-type]
    config, weights = RelabelConfig(), WeightConfig(weight_location=0.25)
    counts = relabel_by_adapter(tmp_path / "images", judge_, tmp_path / "out", config, weights)
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and counts.correct + counts.relabelled == 16 and min(counts.correct, counts.relabelled) > 2
    oracle = Oracle(POCKET_WORLD)
    for row in rows:
        image = np.asarray(Image.open(tmp_path / "out" / row["file_name"]))
        assert judge(parsed(row["prompt"]), oracle.read(image)).passed
        assert row["correctness"] == (row["prompt"] == row["original_prompt"])
        expected = 1.0 if row["correctness"] else 0.25 if row["reason"] == "location" else 0.5
        assert row["weight"] == expected and row["margin"] >= 0
    calls = scorer.calls
    again = relabel_by_adapter(tmp_path / "images", judge_, tmp_path / "out", config, weights)
    assert again == counts and scorer.calls == calls
