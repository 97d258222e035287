"""Suites by name, and selections from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dpt.claims.facts import Prompt
from dpt.claims.parse import UnsupportedPrompt, parse_prompt
from dpt.errors import UserError
from dpt.evaluation.suites import base as unjudged
from dpt.evaluation.suites import geneval, lmd, pocket, sr2d
from dpt.evaluation.suites.base import Layout, Suite

BY_RULE: dict[str, Callable[[], Suite]] = {"lmd": lmd.suite, **lmd.TWO_OBJECTS, "sr2d": sr2d.suite}

FROM_FILE: dict[str, Callable[[Path], Suite]] = {
    "geneval": geneval.suite,
    "coco-nss1k": unjudged.coco_suite,
    "prompts": unjudged.prompts_suite,
}

NAMES = ("pocket", *BY_RULE, *FROM_FILE)


def parse(spec: str) -> tuple[str, Path | None]:
    """ "lmd", or "geneval=FILE"."""
    name, has_file, file = spec.partition("=")
    if name not in NAMES:
        raise UserError(f"there is no suite {name!r}; the suites are {', '.join(NAMES)}")
    if name in FROM_FILE and not file:
        raise UserError(f"the suite {name} needs a file: use {name}=FILE")
    if name not in FROM_FILE and has_file:
        raise UserError(f"the suite {name} takes no file: use {name}")
    return name, Path(file) if file else None


def layout_of(spec: str) -> Layout:
    """The file layout of the suite's images. Does not read the suite's file."""
    return geneval.LAYOUT if spec.partition("=")[0] == "geneval" else "flat"


def load(spec: str, categories: Sequence[str] = (), per_category: int | None = None, seed: int = 0) -> Suite:
    """Load a suite, or some of its categories, with at most `per_category` evenly spread prompts of each."""
    name, file = parse(spec)
    if name == "pocket":
        return pocket.suite(categories, per_category, seed)
    if seed:
        raise UserError(f"--seed changes the prompts of the pocket suite; those of {name} are fixed")
    whole = FROM_FILE[name](file) if file else BY_RULE[name]()
    for category in categories:
        if category not in whole.categories:
            known = ", ".join(whole.categories)
            raise UserError(f"there is no category {category!r} in {name}; the categories are {known}")
    parts = [
        spread([prompt for prompt in whole.prompts if prompt.category == category], per_category)
        for category in categories or whole.categories
    ]
    return replace(whole, prompts=tuple(prompt for part in parts for prompt in part))


def texts_suite(texts: Sequence[str], judged: bool = True, seed: int = 0) -> Suite:
    """Any prompts, with the claims that the rules read from them."""
    prompts = []
    for number, text in enumerate(texts):
        try:
            claims = parse_prompt(text).claims if judged else Prompt("", "", text, (), closed=False)
        except UnsupportedPrompt as reason:
            raise UserError(f"{reason}; with --detector none its images are not judged") from None
        prompts.append(replace(claims, id=f"{seed}-{number:02d}", category="prompts"))
    return Suite("prompts", "texts-1", tuple(prompts), pocket.DETECT if judged else None)


def spread(prompts: Sequence[Prompt], n: int | None) -> list[Prompt]:
    """All prompts, or n at equal distances: suites are sorted, so the first n would be alike."""
    if n is None or n >= len(prompts):
        return list(prompts)
    return [prompts[i * len(prompts) // n] for i in range(n)]
