"""Values of every shape, drawn by hypothesis; `FUZZ_EXAMPLES` sets their number."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpt.adapter.io import AdapterRecord
from dpt.cli.common.console import read_prompts
from dpt.data.files.hard_negatives import COLUMNS, HardNegativeTable
from dpt.data.files.reading import checked_file_name
from dpt.errors import LONGEST, UserError
from dpt.evaluation.bench.results import ImageResult
from dpt.evaluation.suites import registry
from dpt.lora.io import LoraRecord
from dpt.methods.base import DiffusionConfig
from dpt.methods.registry import KEYS, parse_method
from dpt.pocket.training import Recipe
from dpt.records import from_plain, to_plain
from tests.fuzz.data_files import all_rows

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "50"))
many = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES < 100
)

plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=12,
)
WHOLE: tuple[Any, ...] = (
    {"config": {}},
    {"config": {"rank": 4}},
    {"method": "a", "prompt_id": "a", "index": 0, "category": "c", "prompt": "p", "unseen": False, "noise_seed": 1,
     "passed": None, "atoms": [], "objects": [], "unreadable": 0},
    {},
)  # fmt: skip
KINDS = list(zip((AdapterRecord, LoraRecord, ImageResult, Recipe), WHOLE, strict=True))


@pytest.mark.parametrize(("kind", "whole"), KINDS, ids=[kind.__name__ for kind, _ in KINDS])
def test_records_are_valid_or_refused(kind: type[Any], whole: dict[str, Any]) -> None:
    names = st.sampled_from(sorted(kind.__dataclass_fields__)) | st.text(max_size=8)

    @many
    @given(plain | st.dictionaries(names, plain, max_size=4))
    def check(content: Any) -> None:
        for value in (content, {**whole, **content} if isinstance(content, dict) else content):
            try:
                record = from_plain(kind, value, "here")
            except UserError as error:
                assert 0 < len(str(error)) <= LONGEST and str(error).isprintable()
            else:
                assert from_plain(kind, to_plain(record), "there") == record

    check()


@many
@given(st.text() | st.builds(
    lambda name, path, words: f"{name}={path}" + "".join(f",{key}={value}" for key, value in words),
    st.text("ab-_.é/", max_size=5), st.text(max_size=5),
    st.lists(st.tuples(st.sampled_from(sorted(KEYS)) | st.text(max_size=3), st.text("0123459.-+einfa_", max_size=6))),
))  # fmt: skip
def test_methods_are_parsed_or_refused(message: str) -> None:
    try:
        method = parse_method(message)
    except UserError:
        return
    assert isinstance(method, DiffusionConfig) and "/" not in method.name and method.name not in ("", ".", "..")


@many
@given(st.text() | st.text("=geneval./", max_size=12))
def test_suite_names_are_parsed_or_refused(message: str) -> None:
    try:
        name, _ = registry.parse(message)
    except UserError:
        return
    assert name in registry.NAMES


@many
@given(st.text() | st.text("./\\a:\0~", max_size=8))
def test_file_name_stays_in_its_folder(name: str) -> None:
    try:
        checked_file_name(name, "here")
    except UserError:
        return
    root = Path("/root")
    assert (root / os.path.normpath(root / name)).is_relative_to(root) and os.path.normpath(root / name) != str(root)


cells = st.text(max_size=12) | st.lists(st.text(max_size=4), max_size=3).map(repr)


@many
@given(rows=st.lists(st.lists(cells, min_size=3, max_size=5), max_size=4), quoted=st.booleans())
def test_tables_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], quoted: bool) -> None:
    file = tmp_path_factory.getbasetemp() / "table.tsv"
    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(json.dumps(cell) if quoted else cell for cell in row) for row in rows]
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        all_rows(HardNegativeTable(file))
    except UserError as error:
        assert "table.tsv" in str(error)


@many
@given(content=st.lists(plain.map(json.dumps) | st.text(max_size=20), max_size=4), lines=st.booleans())
def test_prompt_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: list[str], lines: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / ("prompts.jsonl" if lines else "prompts.txt")
    file.write_bytes("\n".join(content).encode("utf-8", "surrogatepass"))
    try:
        prompts = read_prompts(file)
    except UserError as error:
        assert "prompts." in str(error)
    else:
        assert prompts and all(prompt.strip() and prompt.encode() for prompt in prompts)
