"""What can be claimed of a flag, and how a claim is held against what the command really does."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Effect:
    """With the words, what is seen is other than without them, and `so` says in what way."""

    words: str
    seen: Callable[[Any], Any]
    so: Callable[[Any, Any], bool] = lambda before, after: differ(before, after)
    """Of what is seen without the words and with them. It must be false of two sights without them."""
    beside: str = ""
    """What is said either way."""
    whole: bool = False
    """Whether the run has to be taken to its end."""


@dataclass(frozen=True)
class Refused:
    """With the words, the command ends with exit code 2 and says this."""

    words: str
    sentence: str


@dataclass(frozen=True)
class Warned:
    """With the words, the command says this and goes on."""

    words: str
    sentence: str


@dataclass(frozen=True)
class Proven:
    """Another test runs the command with the flag, and fails where it is ignored."""

    module: str
    test: str

    def function(self) -> Callable[..., Any]:
        function = getattr(importlib.import_module(self.module), self.test)
        assert inspect.isfunction(function) and self.test.startswith("test_")
        return function


Check = Effect | Refused | Warned | Proven
Table = Mapping[str, Check]
"""By the flag's name, without dashes."""


def differ(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor):
        return before.shape != after.shape or not torch.equal(before, after)
    if isinstance(before, Mapping):
        return before.keys() != after.keys() or any(differ(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple):
        return len(before) != len(after) or any(map(differ, before, after))
    return bool(before != after)


def fields_of(options: Any) -> dict[str, Any]:
    """By flag, through the groups that options are kept in."""
    found: dict[str, Any] = {}
    for one in fields(options):
        value = getattr(options, one.name)
        found.update(fields_of(value) if is_dataclass(value) else {one.name: value})
    return found


def with_field(options: Any, flag: str, value: Any) -> Any:
    """The same options but for one flag."""
    for one in fields(options):
        held = getattr(options, one.name)
        if is_dataclass(held) and flag in fields_of(held):
            return replace(options, **{one.name: with_field(held, flag, value)})
    return replace(options, **{flag: value})


def assert_effect(
    flag: str, check: Effect, options: Any, told: Mapping[str, Any], look: Callable[[Any, bool, int], Any]
) -> None:
    """`told` is what the parser made of the words. `look` says what a run with such options is like: the same object
    for the same options and number."""
    asked = with_field(options, flag, told[flag])
    assert asked != options, f"the words ask for nothing new: {check.words}"
    runs = ((options, 0), (options, 1), (asked, 0))
    before, again, after = (check.seen(look(one, check.whole, number)) for one, number in runs)
    assert check.so(before, after), f"{before!r:.300} without, {after!r:.300} with {check.words}"
    # The same claim, with the flag put back to what it is by itself, as if it had been ignored:
    assert with_field(asked, flag, fields_of(options)[flag]) == options
    assert not check.so(before, again), f"what is claimed would hold if --{flag} did nothing"
