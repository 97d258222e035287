"""The generated public suites equal the published files byte for byte."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import pytest

from dpt.claims.facts import Absent, Noun, RelationByCentres
from dpt.claims.facts import Count as Counted
from dpt.claims.words import plural, with_article
from dpt.errors import UserError
from dpt.evaluation.suites import lmd, registry, sr2d
from dpt.evaluation.suites.base import check_classes

PUBLISHED = {
    "negation": "a9da7d0b60542459",
    "numeracy": "bfbc0e6cc645d5a4",
    "attribution": "4108c3c1b1c6d08f",
    "spatial": "0f4a3499b3762053",
}


def short_hash(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def test_lmd_is_the_published_list() -> None:
    prompts = lmd.suite().prompts
    assert short_hash([prompt.text for prompt in prompts]) == "05333f912cfba860"
    assert len({prompt.text for prompt in prompts}) == 250
    assert len({prompt.id for prompt in prompts}) == 400
    for category, hash_ in PUBLISHED.items():
        texts = [prompt.text for prompt in prompts if prompt.category == category]
        assert (len(texts), short_hash(texts)) == (100, hash_)


def test_sr2d_is_the_published_file() -> None:
    text = sr2d.published()
    assert len(text) == 7_083_100
    assert hashlib.sha256(text.encode()).hexdigest() == sr2d.SHA256
    counts = Counter(prompt.category for prompt in sr2d.suite().prompts)
    assert counts == {"left": 6320, "right": 6320, "above": 6320, "below": 6320, "and": 6320, "single": 80}


def test_claims_match_the_prompts() -> None:
    by_text = {prompt.text: prompt.facts for prompt in (*lmd.suite().prompts, *sr2d.suite().prompts)}
    start = lmd.LMD_OPENING
    assert by_text[f"{start} without cars"] == (Absent(Noun(shape="car")),)
    assert by_text[f"{start} with three cups"] == (Counted(Noun(shape="cup"), 3),)
    pair = next(f for text, f in by_text.items() if text.startswith(start) and "the top" in text.split(" and ")[0])
    assert isinstance(pair[2], RelationByCentres) and pair[2].relation == "above" and pair[2].best_only
    car, dog = Noun(shape="car"), Noun(shape="dog")
    both = (Counted(car, 1, exact=False), Counted(dog, 1, exact=False))
    assert by_text["a car to the right of a dog"] == (*both, RelationByCentres(car, "right", dog, best_only=False))
    assert by_text["a car and a dog"] == both
    assert by_text["a car"] == both[:1]


@pytest.mark.parametrize(
    ("noun", "singular", "plural_form"),
    [("car", "a car", "cars"), ("airplane", "an airplane", "airplanes"), ("umbrella", "an umbrella", "umbrellas"),
     ("oven", "an oven", "ovens"), ("bench", "a bench", "benches"), ("bus", "a bus", "buses"),
     ("skis", "a skis", "skises"), ("hair drier", "a hair drier", "hair driers")],
)  # fmt: skip
def test_articles_and_plurals(noun: str, singular: str, plural_form: str) -> None:
    assert (with_article(noun), plural(noun)) == (singular, plural_form)


def test_a_subset_is_spread_evenly_over_the_suite() -> None:
    part = registry.load("sr2d", ("left",), per_category=10)
    assert len(part.prompts) == 10
    assert len({prompt.text.split(" ")[1] for prompt in part.prompts}) > 5
    assert part.hash != registry.load("sr2d", ("left",), per_category=11).hash
    negation = registry.load("lmd", ("negation",), per_category=10)
    assert len({prompt.text for prompt in negation.prompts}) == 10


def test_the_default_pocket_suite_has_five_categories_of_300() -> None:
    suite = registry.load("pocket")
    assert len(suite.prompts) == 1500 and suite.categories == ("single", "binding", "count", "spatial", "negation")
    assert registry.load("pocket", ("single",), 3, seed=1).prompts[0].id == "single-1-0000"


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [("lmd2", {}, "there is no suite 'lmd2'; the suites are pocket, lmd, lmd-two, lmd-two-published, sr2d"),
     ("geneval", {}, "use geneval=FILE"),
     ("lmd=x", {}, "lmd takes no file"),
     ("lmd", {"seed": 1}, "those of lmd are fixed"),
     ("lmd", {"categories": ("colour",)}, "no category 'colour' in lmd"),
     ("pocket", {"categories": ("colour",)}, "no category 'colour'")],
)  # fmt: skip
def test_invalid_suite_options_are_user_errors(spec: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.load(spec, **options)


def test_suites_judge_and_tables_import_no_torch() -> None:
    rooms = "suites.registry, dpt.detect.base, dpt.claims.judge, dpt.evaluation.bench.tables"
    loaded = f"import sys, dpt.evaluation.{rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


def test_a_detector_without_the_suites_classes_is_an_error() -> None:
    with pytest.raises(
        UserError, match="prompt lmd-000: the oracle does not detect 'backpack'; its classes are circle"
    ):
        check_classes(lmd.suite().prompts, ("circle", "square"), "the oracle")
    check_classes(lmd.suite().prompts, None, "a detector of anything")
    check_classes(registry.load("pocket").prompts, ("circle", "square", "triangle", "cross"), "the oracle")
