"""The numbers in the documents are those of the files beside them, and the links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dpt.detect.accuracy import AccuracyRow, Tally
from dpt.pocket.recipe import RECIPE_FILE, read_recipe
from dpt.records import to_plain
from dpt.sampling.options import recommended_correction

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "ckpt").rglob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not link.startswith("http"):
            assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", ["README.md", "ckpt/pocket/README.md"])
def test_the_pockets_table_is_the_measured_one(document: str) -> None:
    assert (ROOT / "docs/pocket/table.md").read_text().strip() in (ROOT / document).read_text()


def test_the_measured_table_is_of_the_shipped_model() -> None:
    from dpt.backbone.folder import ModelFolder

    measured = json.loads((ROOT / "docs/pocket/pocket.json").read_text())
    assert measured["model"] == ModelFolder.check(ROOT / "ckpt/pocket").content_hash()


@pytest.mark.parametrize("world", ["pocket", "full"])
def test_the_oracles_tables_are_the_measured_ones(world: str) -> None:
    measured = json.loads((ROOT / f"docs/oracle/{world}.json").read_text())
    document = (ROOT / "docs/oracle.md").read_text()
    for name, counts in measured["scenes"].items():
        assert str(AccuracyRow(name, Tally(**counts))) in document
    assert measured["detector"] in document


def test_the_card_tells_the_recipe() -> None:
    card = (ROOT / "ckpt/pocket/README.md").read_text()
    recipe = read_recipe()
    for part in (recipe.text, recipe.vae, recipe.unet):
        assert f"{part.schedule.steps:,}" in card
    further = read_recipe(RECIPE_FILE.with_name("recipe_further.json")).unet
    assert f"{further.schedule.steps:,} steps of {further.schedule.batch} on {further.latents:,}" in card


def test_the_adapters_tables_are_the_measured_ones() -> None:
    tables = (ROOT / "docs/stage1/table.md").read_text()
    assert tables.strip() in (ROOT / "ckpt/pocket-stage1/README.md").read_text()
    row = next(line for line in tables.splitlines() if line.startswith("| up1 |")).split(" | ")
    matching, grounding = row[1], row[4]
    assert re.search(f"{_said(matching)} of 2,000 cases", _flat("README.md"))
    assert re.search(f"{_said(grounding)} of 1,000 expressions", _flat("README.md"))
    assert json.loads((ROOT / "docs/stage1/probe.json").read_text())["asked"]["num"] == 1000


def test_the_measured_adapter_is_the_shipped_one_and_reads_the_shipped_model() -> None:
    measured = json.loads((ROOT / "docs/stage1/probe.json").read_text())
    record = json.loads((ROOT / "ckpt/pocket-stage1/adapter/adapter.json").read_text())
    pocket = json.loads((ROOT / "docs/pocket/pocket.json").read_text())["model"]
    assert measured["model"] == record["base_hash"] == pocket
    assert [one["where"] for one in measured["adapters"]] == ["ckpt/pocket-stage1/adapter"]


def test_the_study_is_the_measured_one() -> None:
    assert (ROOT / "docs/probe/table.md").read_text().strip() in (ROOT / "docs/probe.md").read_text()
    measured = json.loads((ROOT / "docs/probe/probe.json").read_text())
    features = re.search(r"^FEATURES = (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert features and [one["name"] for one in measured["adapters"]] == features[1].split()


def test_the_results_are_the_measured_ones_of_what_is_shipped() -> None:
    from dpt.checkpoints import open_checkpoint
    from dpt.weights import content_hash

    assert (ROOT / "docs/results/table.md").read_text().strip() in (ROOT / "docs/stage2.md").read_text()
    measured = json.loads((ROOT / "docs/results/results.json").read_text())
    asked = measured["asked"]
    assert (asked["prompts"], asked["per_prompt"], asked["suite"]) == (300, 4, "pocket")
    pocket = json.loads((ROOT / "docs/pocket/pocket.json").read_text())["model"]
    for method, folder in {
        "control": "pocket-plain",
        "dpt": "pocket-dpt",
        "best4": "pocket-dpt",
        "corrected": "pocket-dpt",
    }.items():
        checkpoint = open_checkpoint(ROOT / "ckpt" / folder)
        made_of = measured["methods"][method]
        assert checkpoint.lora is not None and made_of["lora"] == content_hash(checkpoint.lora.tensors)
        assert made_of["model"] == pocket
    assert checkpoint.adapter is not None and made_of["adapter"] == content_hash(checkpoint.adapter.state_dict())
    assert made_of["correction"] == to_plain(recommended_correction(asked["num_timesteps"]))


def test_the_results_can_be_counted_again_from_their_lines() -> None:
    lines = [json.loads(line) for line in (ROOT / "docs/results/summary.jsonl").read_text().splitlines()]
    measured = json.loads((ROOT / "docs/results/results.json").read_text())
    for result in measured["results"]:
        own = [one for one in lines if one["method"] == result["method"]]
        assert len(own) == 1500
        for category in measured["asked"]["categories"]:
            right = [one["right"] for one in own if one["category"] == category]
            assert len(right) == 300 and {len(one) for one in right} == {4}
            assert result["rates"][category]["value"] == pytest.approx(sum(map(sum, right)) / 1200)


def test_the_sweep_is_the_measured_one_and_what_is_recommended_is_in_it() -> None:
    document = (ROOT / "docs/sampling.md").read_text()
    assert (ROOT / "docs/sweep/table.md").read_text().strip() in document
    ways = json.loads((ROOT / "docs/sweep/sweep.json").read_text())["ways"]
    assert to_plain(recommended_correction(25)) in [one["correction"] for one in ways]


def test_what_it_costs_is_what_was_measured() -> None:
    document = (ROOT / "docs/performance.md").read_text()
    assert "{{" not in document
    for numbers in sorted((ROOT / "docs/performance").glob("*.json")):
        record = json.loads(numbers.read_text())
        assert record["command"].split()[1].startswith("benchmarks/") and (ROOT / record["command"].split()[1]).exists()
        assert record["date"] and record["machine"] and record["found"]
        assert numbers.with_suffix(".md").read_text().strip() in document, numbers.name


def test_what_was_tried_is_the_measured_table() -> None:
    assert (ROOT / "docs/stage2/pilots.md").read_text().strip() in (ROOT / "docs/stage2.md").read_text()


def test_what_tuning_left_of_the_adapters_knowledge() -> None:
    assert (ROOT / "docs/stage2/table.md").read_text().strip() in (ROOT / "docs/stage2.md").read_text()


def test_the_faults_are_the_recorded_ones() -> None:
    document = _flat("docs/reliability.md")
    recorded = json.loads((ROOT / "docs/reliability/faults.json").read_text())
    for part in recorded.values():
        for what, facts in part.items():
            if isinstance(facts, dict):
                assert facts["differences"] == [], what
            if isinstance(facts, dict) and "kills" in facts:
                assert f"{facts['kills']}, {facts['inside_a_save']} of them inside a save" in document, what
    line = json.loads((ROOT / "docs/reliability/long_run.json").read_text())
    for name in ("rss_after_10_minutes", "rss_after_20_minutes"):
        low, high = line[name]["interval_mib_per_hour"]
        assert f"{line[name]['slope_mib_per_hour']:.2f} MiB an hour ({low:.2f} to {high:.2f})" in document


def _said(cell: str) -> str:
    """A table's "88.0 (86.6-89.4)" as a sentence has it."""
    return re.escape(cell.replace(" (", " % ("))


def _flat(document: str) -> str:
    return " ".join((ROOT / document).read_text().split())


def test_the_pocket_is_small() -> None:
    files = [file for file in (ROOT / "ckpt/pocket").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 30e6
    assert max(file.stat().st_size for file in files) < 20e6
