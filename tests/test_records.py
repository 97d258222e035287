from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dpt.errors import UserError
from dpt.pocket.training import RECIPE_FILE, Recipe, read_recipe
from dpt.records import from_plain, read_record, to_plain


@dataclass(frozen=True)
class Inner:
    rates: tuple[float, ...] = (0.5,)


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    count: int = 1
    where: Path | None = None
    pairs: tuple[tuple[str, float], ...] = ()
    named: dict[str, Inner] = field(default_factory=dict)
    mode: Literal["a", "b"] = "a"
    value: int | str | None = None
    steps: list[int] = field(default_factory=list)


def test_record_round_trips_through_json() -> None:
    record = Outer("x", Inner((1.0, 2.0)), 3, Path("a/b"), (("p", 0.5),), {"one": Inner((3.0,))}, "b", 3, [1, 2])
    assert from_plain(Outer, to_plain(record), "here") == record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "x", "nmae": 1}, "unknown key 'nmae'"),
        ({}, "name"),
        ({"name": 3}, "expected str, got 3"),
        ({"name": "x", "count": True}, "expected int, got True"),
        ({"name": "x", "count": 1.5}, "expected int, got 1.5"),
        ({"name": "x", "inner": {"rates": ["a"]}}, "here: inner: rates[0]: expected float"),
        ({"name": "x", "inner": {"rates": 1}}, "expected a list"),
        ({"name": "x", "pairs": [["p"]]}, "expected 2 values, got 1"),
        ({"name": "x", "mode": "c"}, "here: mode: expected one of 'a', 'b', got 'c'"),
        ({"name": "x", "value": True}, "here: value: expected str, got True"),
        ({"name": "x", "steps": [1, True]}, "here: steps[1]: expected int, got True"),
        ([], "expected an object"),
        ({"name": "x", "named": []}, "here: named: expected an object, got []"),
        ({"name": "x", "named": {"one": {"rate": 1}}}, "here: named: one: unknown key 'rate'"),
        ({"name": "x", "inner": {"rates": [float("nan")]}}, "rates[0]: expected float, got nan"),
        ({"name": "x", "inner": {"rates": [float("-inf")]}}, "rates[0]: expected float, got -inf"),
        ({"name": "x", "inner": {"rates": [10**400]}}, "rates[0]: expected float, got 1000"),
    ],
)
def test_errors_name_the_field(content: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_plain(Outer, content, "here")
    assert message in str(error.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_record(Outer, tmp_path / "none.json")
    for text in ('{"name": ', "[" * 100_000, '{"name": "\\ud800"}', "9" * 5000):
        (tmp_path / "cut.json").write_text(text)
        with pytest.raises(UserError, match="not valid JSON"):
            read_record(Outer, tmp_path / "cut.json")


def test_shipped_recipe_is_valid() -> None:
    recipe = read_recipe()
    assert to_plain(recipe) == json.loads(RECIPE_FILE.read_text()), "every setting stands in the file"
    assert isinstance(recipe, Recipe)
