"""Training and test records that share neither a user nor a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dpt.data.preference.records import PreferenceRecord
from dpt.errors import DataError
from dpt.keyed_random import KeyedRandom


@dataclass(frozen=True)
class PreferenceSplit:
    train: list[PreferenceRecord]
    test: list[PreferenceRecord]


def normalised(prompt: str) -> str:
    return " ".join(prompt.lower().split())


def keys_of(record: PreferenceRecord) -> tuple[str, ...]:
    """What a training and a test record may not have in common."""
    user = (f"user {record.user}",) if record.user else ()
    return (f"prompt {normalised(record.prompt)}", *user)


def shared_keys(train: Iterable[PreferenceRecord], test: Iterable[PreferenceRecord]) -> set[str]:
    """Users and prompts of the test records that occur in training."""
    seen = {key for record in train for key in keys_of(record)}
    return {key for record in test for key in keys_of(record)} & seen


def split_records(records: Sequence[PreferenceRecord], test_fraction: float, seed: int = 0) -> PreferenceSplit:
    """Move whole groups of records, linked by a user or a prompt, to the test part until it has its fraction.

    The result does not depend on the order of the records.
    """
    groups = sorted(linked_groups(records), key=lambda group: min(record.id for record in group))
    order = KeyedRandom("preference split", seed).sample(groups, len(groups))
    goal = test_fraction * len(records)
    train: list[PreferenceRecord] = []
    test: list[PreferenceRecord] = []
    for group in order:
        (test if len(test) + len(group) <= goal + 0.5 else train).extend(group)
    if not test or not train:
        raise DataError(
            f"the {len(records)} preferences cannot be split into training and test records: users and prompts link "
            "them all; give a test file"
        )
    place = {id(record): n for n, record in enumerate(records)}
    return PreferenceSplit(*(sorted(part, key=lambda record: place[id(record)]) for part in (train, test)))


def linked_groups(records: Sequence[PreferenceRecord]) -> list[list[PreferenceRecord]]:
    parent = list(range(len(records)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, record in enumerate(records):
        for key in keys_of(record):
            parent[root(i)] = root(first.setdefault(key, i))
    groups: dict[int, list[PreferenceRecord]] = {}
    for i, record in enumerate(records):
        groups.setdefault(root(i), []).append(record)
    return list(groups.values())
