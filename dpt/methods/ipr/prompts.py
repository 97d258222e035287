"""Prompts with their structure: from a suite or a file, split into training and held-out ones, and stored.

A file is a JSON list as SR2D publishes it. Rows of other suites carry their claims; rows with neither are parsed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dpt.claims.facts import (
    Absent,
    Claim,
    ColourOfBest,
    Count,
    FewerThan,
    Prompt,
    Related,
    RelationByCentres,
    RelationOfBest,
)
from dpt.claims.judge import DetectConfig
from dpt.claims.parse import UnsupportedPrompt, parse_prompt
from dpt.errors import UserError
from dpt.evaluation.suites import pocket, registry, sr2d
from dpt.evaluation.suites.base import Suite, UniqueIds, as_object, name_of, text_of
from dpt.keyed_random import KeyedRandom
from dpt.methods.ipr.config import PromptConfig
from dpt.records import from_plain
from dpt.untrusted import read_json

CLAIMS: dict[str, type] = {
    kind.__name__: kind for kind in (Count, Related, Absent, RelationByCentres, RelationOfBest, ColourOfBest, FewerThan)
}

SR2D_PREFIX = "sr2d-"

POOL = 20
"""Oversampling factor: prompts to draw from the pocket grammar, per prompt needed, before the held-out split."""

OPEN = DetectConfig("a photo of {a} {noun}", 0.3, nms=0.6)
"""How an open-vocabulary detector is queried for prompts of a file."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and how a detector is queried for them."""

    name: str
    prompts: tuple[Prompt, ...]
    detect_config: DetectConfig
    detector: str

    @property
    def digest(self) -> str:
        rows = json.dumps([row_of(prompt) for prompt in self.prompts])
        return hashlib.sha256(f"{rows}{self.detect_config}".encode()).hexdigest()

    @property
    def suite(self) -> Suite:
        """The prompts as a `Suite` of the benchmark."""
        return Suite(self.name, f"ipr-{self.name}", self.prompts, self.detect_config, detector=self.detector)


def load_prompts(config: PromptConfig) -> tuple[PromptSet, PromptSet]:
    """Training prompts and held-out prompts. No two nouns occur together in both."""
    suite = _suite(config)
    fraction, seed = config.held_out_fraction, config.prompts_seed
    training: list[Prompt] = []
    held_out: list[Prompt] = []
    for nth, category in enumerate(config.categories or suite.categories):
        own = [prompt for prompt in suite.prompts if prompt.category == category]
        if not own:
            raise UserError(f"there is no category {category!r} in {config.suite}: {', '.join(suite.categories)}")
        is_test = [is_held_out(prompt, fraction, seed) for prompt in own]
        if config.held_out and not any(is_test):
            raise UserError(f"no prompt of {category} is held out: raise --held_out_fraction, or give --held_out 0")
        if all(is_test):
            raise UserError(f"all prompts of {category} are held out: lower --held_out_fraction")
        n = config.training_prompts(nth)
        training += registry.spread([p for p, out in zip(own, is_test, strict=True) if not out], n)
        if config.held_out:
            held_out += registry.spread([p for p, out in zip(own, is_test, strict=True) if out], config.held_out)
    assert suite.detect_config is not None
    parts = (training, held_out)
    first, second = (PromptSet(suite.name, tuple(p), suite.detect_config, suite.detector or "owlv2") for p in parts)
    return first, second


def is_held_out(prompt: Prompt, fraction: float, seed: int) -> bool:
    """Decided by the pair of nouns, whatever their order and relation; a prompt with one noun by its words."""
    if not fraction:
        return False
    nouns = sorted(str(noun) for noun in prompt.nouns)
    key = nouns if len(nouns) > 1 else [prompt.text]
    return prompt.unseen or KeyedRandom("held out", seed, *key).chance(fraction)


def _suite(config: PromptConfig) -> Suite:
    name = config.suite.partition("=")[0]
    if name not in registry.NAMES:
        return suite_of_file(Path(config.suite))
    if name == "pocket":
        n = POOL * (config.most_training_prompts + config.held_out)
        return pocket.suite(config.categories, n, config.prompts_seed)
    if config.prompts_seed:
        raise UserError(f"--prompts_seed changes the prompts of the pocket suite; those of {name} are fixed")
    suite = registry.load(config.suite)
    if suite.detect_config is None:
        raise UserError(f"the prompts of {name} have no structure to check: give pocket, lmd, sr2d or geneval=FILE")
    return replace(suite, prompts=tuple(prompt for prompt in suite.prompts if prompt.nouns))


def suite_of_file(file: Path) -> Suite:
    if not file.exists():
        known = ", ".join((*registry.BY_RULE, "pocket", "geneval=FILE"))
        raise UserError(f"there is no suite or file {str(file)!r}; the suites are {known}")
    prompts = read_prompts(file)
    as_sr2d = all(prompt.id.startswith(SR2D_PREFIX) for prompt in prompts)
    scenes = not as_sr2d and all(prompt.closed or any(n.colour for n in prompt.nouns) for prompt in prompts)
    config = sr2d.DETECT if as_sr2d else pocket.DETECT if scenes else OPEN
    return Suite(file.stem, f"{file.stem}-1", prompts, config, detector="oracle" if scenes else "owlv2")


def read_prompts(file: Path) -> tuple[Prompt, ...]:
    rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{file} must be a JSON list of prompts, as SR2D has it")
    ids = UniqueIds()
    prompts = []
    for number, row in enumerate(rows):
        where = f"{file}, entry {number}"
        prompt = prompt_of(as_object(where, row), where, number)
        ids.add(where, prompt.id)
        prompts.append(prompt)
    return tuple(prompts)


def prompt_of(row: Mapping[str, Any], where: str, number: int = 0) -> Prompt:
    """A row with SR2D's keys, with claims, or with nothing but a text that the rules parse."""
    text = text_of(where, row, "text")
    unique_id = row.get("unique_id", number)
    if "rel_type" in row:
        return _sr2d_prompt(row, text, unique_id, where)
    id_ = name_of(where, row, "unique_id", str(number))
    category = name_of(where, row, "category", "prompts")
    if "claims" in row:
        claims = row["claims"]
        if not isinstance(claims, list):
            raise UserError(f"{where}: 'claims' must be a list, not {claims!r}")
        facts = tuple(_claim_of(as_object(where, claim), where) for claim in claims)
        closed, unseen = bool(row.get("closed", False)), bool(row.get("unseen", False))
        return Prompt(id_, category, text, facts, closed, unseen, where)
    try:
        parsed = parse_prompt(text)
    except UnsupportedPrompt as error:
        raise UserError(f"{where}: {error}; give its 'claims', or leave it out") from None
    return Prompt(id_, category, text, parsed.facts, parsed.closed, where=where)


def _sr2d_prompt(row: Mapping[str, Any], text: str, unique_id: Any, where: str) -> Prompt:
    if not isinstance(unique_id, int) or isinstance(unique_id, bool) or unique_id < 0:
        raise UserError(f"{where}: 'unique_id' must be a number from 0 up, not {unique_id!r}")
    names = [row.get(f"obj_{n}_attributes") for n in (1, 2)]
    nouns = [name for own in names if isinstance(own, list) for name in own if name is not None]
    if not 1 <= len(nouns) <= 2 or not all(isinstance(noun, str) and noun for noun in nouns):
        raise UserError(f"{where}: 'obj_1_attributes' and 'obj_2_attributes' must be lists of one noun each")
    relation = row["rel_type"]
    if relation not in (*sr2d.RELATIONS, "and", "single") or (len(nouns) < 2) != (relation == "single"):
        raise UserError(f"{where}: 'rel_type' {relation!r} does not fit {len(nouns)} nouns")
    prompt = sr2d.prompt_of_row({**row, "unique_id": unique_id, "text": text})
    return replace(prompt, where=where)


def _claim_of(content: Mapping[str, Any], where: str) -> Claim:
    kind = CLAIMS.get(str(content.get("claim")))
    if kind is None:
        raise UserError(f"{where}: there is no claim {content.get('claim')!r}; the claims are {', '.join(CLAIMS)}")
    fields = {key: value for key, value in content.items() if key != "claim"}
    claim: Claim = from_plain(kind, fields, where)
    return claim


def row_of(prompt: Prompt) -> dict[str, Any]:
    """The row that `prompt_of` reads; SR2D's own rows for its prompts."""
    if prompt.id.startswith(SR2D_PREFIX):
        return sr2d.row_of_prompt(prompt)
    claims = [{"claim": type(claim).__name__, **asdict(claim)} for claim in prompt.facts]
    row: dict[str, Any] = {"unique_id": prompt.id, "category": prompt.category, "text": prompt.text, "claims": claims}
    return row | {"closed": prompt.closed} | ({"unseen": True} if prompt.unseen else {})


def unique_id(prompt: Prompt) -> int | str:
    """The `unique_id` of the prompt in files and dumps: a number for SR2D."""
    return int(prompt.id.removeprefix(SR2D_PREFIX)) if prompt.id.startswith(SR2D_PREFIX) else prompt.id


def write_prompts(prompts: Sequence[Prompt], file: Path) -> None:
    file.write_text(json.dumps([row_of(prompt) for prompt in prompts], indent=2) + "\n")
