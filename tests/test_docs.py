"""The documentation: links, files and commands exist, and the measured numbers are those of the JSON beside them."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from dpt.detect.accuracy import AccuracyRow, CaptionRow, DetectionCounts
from dpt.embedded import embedded_defaults
from dpt.pocket.training import RECIPE_FILE, read_recipe
from dpt.records import to_plain
from dpt.sampling.options import Correction, recommended_correction

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs/results"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "data").glob("*.md")]
    + [page for folder in ("docs", "ckpt", "integrations") for page in (ROOT / folder).rglob("*.md")]
)

PLACE = re.compile(r"`((?:dpt|docs|tests|tools|benchmarks|ckpt/pocket[\w-]*|data/sample)/[\w./-]*)`")
"""A file or folder of the repository, named in the text. `NAME` stands for any; "`FILE`:" introduces a new one."""

SCRIPTS = ("txt2img.py", "train_stage1.py", "train_stage2.py", "train_hps.py", "train_ipr.py")


def read_json(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The anchors that a renderer gives the headings of a page."""
    titles = (re.sub(r"[`*]", "", title.strip().lower()) for title in re.findall(r"^#+ (.*)$", prose(page), re.M))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@functools.cache
def flags(command: str) -> frozenset[str]:
    """The flags that `--help` of a script or of a dpt command lists."""
    words = shlex.split(command)
    output = io.StringIO()
    with mock.patch.object(sys, "argv", [*words, "--help"]), contextlib.redirect_stdout(output):
        try:
            if words[0] == "dpt":
                runpy.run_module("dpt", run_name="__main__")
            else:
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"{command} --help ends with {end.code}"
    return frozenset(re.findall(r"(?<![\w-])--?[a-z]\w*", re.sub(r"\x1b\[[\d;]*m", "", output.getvalue())))


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in ("&&", "||", ";", "|"):
            yield words
            words = []
        else:
            words.append(word)


def documented_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(command, its words) of every dpt command and script in the page's ```sh blocks."""
    from dpt.cli.main import COMMANDS
    from dpt.cli.main import SCRIPTS as ALIASES

    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", page.read_text(), re.S | re.M):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for words in simple_commands(line):
                start = next((k for k, word in enumerate(words) if word in SCRIPTS), None)
                if start is not None:
                    yield words[start], words[start + 1 :]
                elif words[:1] == ["dpt"] or ["-m", "dpt"] in [words[k : k + 2] for k in range(len(words))]:
                    words = words[words.index("dpt") + 1 :]
                    name = next((n for n in (*COMMANDS, *ALIASES) if words[: len(n.split())] == n.split()), None)
                    assert name or words[:1] == ["--help"], f"no such command: {line.strip()}"
                    if name:
                        yield f"dpt {name}", words[len(name.split()) :]


def test_links_lead_to_files_and_headings() -> None:
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if link.startswith("http"):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_files_named_in_the_text_exist() -> None:
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in PLACE.findall(page.read_text())
        if "NAME" not in name and f"`{name}`:\n" not in page.read_text() and not (ROOT / name).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_in_documented_commands_exist(page: Path) -> None:
    for command, words in documented_commands(page):
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} - {"-h", "--help"}
        assert given <= flags(command), f"{command}: {sorted(given - flags(command))}"


def test_make_targets_in_the_text_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`make ([\w-]+)`|^make ([\w-]+)", page.read_text(), re.M)
        for name in name
        if name
    }
    assert {(page, name) for page, name in named if name not in targets} == set()


@pytest.mark.slow
def test_the_snippets_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ckpt").symlink_to(ROOT / "ckpt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for snippet in re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python-api.md").read_text(), re.S | re.M):
        exec(snippet, names)


TABLES = [
    ("pocket/table.md", "ckpt/pocket/README.md"),
    ("stage1/table.md", "ckpt/pocket-stage1/README.md"),
    ("stage2/table.md", "docs/results/stage2.md"),
    ("stage2/pilots.md", "docs/results/stage2.md"),
    ("benchmark/table.md", "docs/results/stage2.md"),
    ("probe/table.md", "docs/results/probe.md"),
    ("sweep/table.md", "docs/results/sweep.md"),
    ("ipr/table.md", "docs/results/ipr.md"),
    ("pocket-mmdit/tuning/table.md", "docs/results/mmdit.md"),
    ("pocket-mmdit/tuning/trials-table.md", "docs/results/mmdit.md"),
    ("pocket-mmdit/tuning/probe.md", "docs/results/mmdit.md"),
    ("pocket-mmdit/tuning/probe.md", "ckpt/pocket-mmdit-stage1/README.md"),
    ("pocket-mmdit/tuning/blocks.md", "docs/results/mmdit.md"),
    ("table/one-table.md", "docs/results/index.md"),
    ("table/table.md", "docs/results/index.md"),
    ("ipr/trials.md", "docs/results/ipr.md"),
    ("ipr/ablations.md", "docs/results/ipr.md"),
    ("ipr/four.md", "docs/results/ipr.md"),
    ("reader/agreement.md", "docs/results/reader.md"),
    ("reader/agreement-1500.md", "docs/results/reader.md"),
    ("reader/agreement-plain400.md", "docs/results/reader.md"),
    *((f"performance/{file.name}", "docs/results/performance.md") for file in (RESULTS / "performance").glob("*.md")),
]


@pytest.mark.parametrize(("table", "page"), TABLES)
def test_pages_show_the_measured_tables(table: str, page: str) -> None:
    measured, _, _ = (RESULTS / table).read_text().partition("All in one table:")  # which has a file of its own
    assert measured.strip() in (ROOT / page).read_text()


def test_benchmark_records_name_their_command_date_and_machine() -> None:
    for file in (RESULTS / "performance").glob("*.json"):
        record = json.loads(file.read_text())
        assert (ROOT / record["command"].split()[1]).exists()
        assert record["date"] and record["machine"]


def test_the_reader_page_is_of_the_shipped_reader() -> None:
    from dpt.claims.judge import DetectConfig
    from dpt.detect.registry import open_detector

    assert open_detector("reader", DetectConfig("", 0.0)).identity == read_json("reader/pocket.json")["detector"]


def test_pocket_numbers_belong_to_the_shipped_model() -> None:
    from dpt.backbone.folder import ModelFolder
    from dpt.backbone.identity import is_model

    measured = read_json("pocket/pocket.json")["model"]
    assert is_model(measured, ModelFolder.check(ROOT / "ckpt/pocket"))
    record = json.loads((ROOT / "ckpt/pocket-stage1/adapter/adapter.json").read_text())
    assert read_json("stage1/probe.json")["model"] == record["base_hash"] == measured


@pytest.mark.parametrize(
    ("file", "name"), [("oracle/pocket", "oracle"), ("oracle/full", "oracle"), ("reader/pocket", "reader")]
)
def test_the_pages_of_detectors_show_the_measured_rows(file: str, name: str) -> None:
    measured = read_json(f"{file}.json")
    page = (RESULTS / f"{name}.md").read_text()
    assert measured["detector"] in page
    for name, counts in measured["scenes"].items():
        assert str(AccuracyRow(name, DetectionCounts(**counts))) in page
    for row in (row for rows in measured.get("captions", {}).values() for row in rows):
        assert str(CaptionRow(**row)) in page


def test_the_pocket_card_states_the_recipe() -> None:
    card = (ROOT / "ckpt/pocket/README.md").read_text()
    recipe = read_recipe()
    for part in (recipe.text, recipe.vae, recipe.unet):
        assert f"{part.schedule.steps:,}" in card
    further = read_recipe(RECIPE_FILE.with_name("recipe_further.json")).unet
    for number in (further.schedule.steps, further.schedule.batch, further.latents):
        assert f"{number:,}" in card


def shipped_correction(steps: int) -> Correction:
    return recommended_correction(embedded_defaults().correction, steps)


def test_benchmark_results_were_made_with_the_shipped_checkpoints() -> None:
    from dpt.checkpoints import open_checkpoint
    from dpt.weights import content_hash

    measured = read_json("benchmark/results.json")
    pocket = read_json("pocket/pocket.json")["model"]
    folders = {"control": "pocket-plain", "dpt": "pocket-dpt", "best4": "pocket-dpt", "corrected": "pocket-dpt"}
    for method, folder in folders.items():
        checkpoint = open_checkpoint(ROOT / "ckpt" / folder)
        record = measured["methods"][method]
        assert checkpoint.lora is not None and record["lora"] == content_hash(checkpoint.lora.tensors)
        assert record["model"] == pocket
    assert checkpoint.adapter is not None and record["adapter"] == content_hash(checkpoint.adapter.state_dict())
    assert record["correction"] == to_plain(shipped_correction(measured["asked"]["num_timesteps"]))


def test_the_one_table_was_made_with_the_shipped_checkpoints() -> None:
    from dpt.checkpoints import open_checkpoint
    from dpt.weights import content_hash

    measured = read_json("table/results.json")["methods"]
    for method, folder in {"control": "plain", "dpt": "dpt", "corrected": "dpt", "ipr": "ipr"}.items():
        checkpoint = open_checkpoint(ROOT / "ckpt" / f"pocket-mmdit-{folder}")
        assert checkpoint.lora is not None and measured[method]["lora"] == content_hash(checkpoint.lora.tensors)


def test_readme_shows_the_one_table() -> None:
    written = runpy.run_path(str(ROOT / "tools/readme_table.py"))["updated"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert written(readme, read_json("table/results.json")) == readme


def test_benchmark_rates_follow_from_the_lines() -> None:
    lines = [json.loads(line) for line in (RESULTS / "benchmark/summary.jsonl").read_text().splitlines()]
    measured = read_json("benchmark/results.json")
    for result in measured["results"]:
        for category in measured["asked"]["categories"]:
            right = [
                line["right"] for line in lines if line["method"] == result["method"] and line["category"] == category
            ]
            assert len(right) == 300 and {len(row) for row in right} == {4}
            assert result["rates"][category]["value"] == pytest.approx(sum(map(sum, right)) / 1200)


def test_the_recommended_correction_is_in_the_sweep() -> None:
    ways = read_json("sweep/sweep.json")["ways"]
    assert to_plain(shipped_correction(25)) in [way["correction"] for way in ways]


def test_the_probe_study_covers_the_features_of_the_makefile() -> None:
    features = re.search(r"^FEATURES = (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert features and [row["name"] for row in read_json("probe/probe.json")["adapters"]] == features[1].split()


def test_the_fault_runs_found_no_difference() -> None:
    page = " ".join((RESULTS / "reliability.md").read_text().split())
    for part in read_json("reliability/faults.json").values():
        for name, record in part.items():
            if isinstance(record, dict):
                assert record["differences"] == [], name
            if isinstance(record, dict) and "kills" in record:
                assert f"{record['kills']}, {record['inside_a_save']} of them inside a save" in page, name
    long_run = read_json("reliability/long_run.json")
    for name in ("rss_after_10_minutes", "rss_after_20_minutes"):
        low, high = long_run[name]["interval_mib_per_hour"]
        assert f"{long_run[name]['slope_mib_per_hour']:.2f} MiB an hour ({low:.2f} to {high:.2f})" in page


def test_the_pocket_stays_small() -> None:
    sizes = [file.stat().st_size for file in (ROOT / "ckpt/pocket").rglob("*") if file.is_file()]
    assert sum(sizes) <= 30e6 and max(sizes) < 20e6


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = {page for entry in site["nav"] for page in pages_of(next(iter(entry.values())))}
    written = {
        str(file.relative_to(ROOT)) for pattern in ("docs/*.md", "docs/results/*.md") for file in ROOT.glob(pattern)
    }
    assert written <= pages
    assert not [page for page in pages if not (ROOT / page).is_file()]


def pages_of(entry: str | list[dict[str, str]]) -> list[str]:
    return [entry] if isinstance(entry, str) else [page for item in entry for page in item.values()]
