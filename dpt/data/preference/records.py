"""Preference records and the published files that hold them: read, split without overlap, checked before training.

| format | an entry |
|---|---|
| choice | `id`, `prompt`, `file_path` (list), `human_preference` (index of the chosen image), `user_hash` |
| HPDv2 train | `prompt`, `file_path` (two), `human_preference` (two shares, such as [1, 0]) |
| HPDv2 test | `prompt`, `image_path` (list), `rank` (a rank per image, the smallest is the best) |
| pairs | `caption`, `image_0`, `image_1`, `label_0`, `label_1` (1, 0 or 0.5), `user_id`: the fields of Pick-a-Pic |

A file is a JSON list, or JSONL with an entry per line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.data.files.reading import Row, checked_file_name, is_number, is_whole, parse_line, read_json, read_lines, shown
from dpt.data.images import read_header, read_image
from dpt.errors import BrokenImageError, DataError
from dpt.files import atomic_file
from dpt.keyed_random import KeyedRandom

MOST_CHOICES = 1000
"""Of one record."""


@dataclass(frozen=True)
class PreferenceRecord:
    id: str
    prompt: str
    pictures: tuple[str, ...]
    """File names relative to the image folder."""
    target: tuple[float, ...]
    """How often each image was chosen, as shares that sum to 1."""
    ranks: tuple[float, ...]
    """The smallest is the best; equal ranks are ties."""
    user: str = ""
    where: str = ""
    """File and entry, for error messages."""

    @property
    def chance(self) -> float:
        """Top-1 accuracy of a random choice."""
        return sum(rank == min(self.ranks) for rank in self.ranks) / len(self.ranks)


def read_preferences(file: Path) -> list[PreferenceRecord]:
    """All records of a file in one of the formats above. Any fault is a DataError that names the entry."""
    records = [_parse(row, number) for number, row in enumerate(_rows(file))]
    if not records:
        raise DataError(f"{file} holds no preference")
    return records


def _rows(file: Path) -> Iterator[Row]:
    if file.suffix == ".jsonl":
        yield from (parse_line(line, where) for where, line in read_lines(file))
        return
    content = read_json(file)
    if not isinstance(content, list):
        raise DataError(f"{file} should be a list of preferences, not {shown(content)}")
    yield from (Row(entry, f"{file}, entry {number}") for number, entry in enumerate(content, 1))


def _parse(row: Row, number: int) -> PreferenceRecord:
    prompt = row.text("prompt" if "prompt" in row else "caption")
    if "rank" in row:
        pictures, ranks = _pictures(row, "image_path" if "image_path" in row else "file_path"), _ranks(row)
        best = [rank == min(ranks) for rank in ranks]
        target = tuple(is_best / sum(best) for is_best in best)
    elif "label_0" in row:
        pictures = tuple(row.file_name(name) for name in ("image_0", "image_1"))
        target = _shares(row, [row.content.get("label_0"), row.content.get("label_1")], "'label_0' and 'label_1'")
        ranks = tuple(-share for share in target)
    else:
        pictures = _pictures(row, "file_path")
        target = _target(row, len(pictures))
        ranks = tuple(-share for share in target)
    if len(ranks) != len(pictures):
        row.fail(f"there are {len(pictures)} images and {len(ranks)} preferences")
    user = next((str(row.content[key]) for key in ("user_hash", "user_id") if row.content.get(key)), "")
    return PreferenceRecord(str(row.content.get("id", number)), prompt, pictures, target, ranks, user, row.where)


def _pictures(row: Row, key: str) -> tuple[str, ...]:
    names = row.get(key, list)
    if not 1 <= len(names) <= MOST_CHOICES or not all(isinstance(name, str) for name in names):
        row.fail(f"{key!r} should list 1 to {MOST_CHOICES} file names, not {shown(names)}")
    if len(set(names)) != len(names):
        row.fail(f"{key!r} lists an image twice: {shown(names)}")
    return tuple(checked_file_name(name, row.where) for name in names)


def _target(row: Row, count: int) -> tuple[float, ...]:
    """One-hot for the index of the chosen image; or the shares themselves."""
    choice = row.content.get("human_preference")
    if isinstance(choice, list):
        return _shares(row, choice, "'human_preference'")
    if not is_whole(choice):
        row.fail(f"'human_preference' should be the index of an image or a list of shares, not {shown(choice)}")
    assert isinstance(choice, int)
    if not 0 <= choice < count:
        row.fail(f"'human_preference' is {choice}, and there are {count} images: indices start at 0")
    return tuple(float(i == choice) for i in range(count))


def _shares(row: Row, values: Sequence[Any], name: str) -> tuple[float, ...]:
    if not values or not all(is_number(value) and value >= 0 for value in values) or not sum(values) > 0:
        row.fail(f"{name} should be numbers from 0 up that are not all 0, not {shown(list(values))}")
    return tuple(value / sum(values) for value in values)


def _ranks(row: Row) -> tuple[float, ...]:
    ranks = row.get("rank", list)
    if not ranks or not all(map(is_number, ranks)):
        row.fail(f"'rank' should be a list of numbers, not {shown(ranks)}")
    return tuple(map(float, ranks))


def write_choices(file: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the published `preference_*.json`."""
    with atomic_file(file) as work:
        work.write_text(json.dumps(list(entries), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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


@dataclass(frozen=True)
class PreferenceReport:
    records: int
    pictures: int
    sizes: dict[int, int]
    """Records by their number of images."""
    users: int
    prompts: int
    chance: float
    """Top-1 accuracy of a random choice."""
    broken: list[str]
    """A sentence for each image that is missing or cannot be read."""
    ties: int
    """Records with more than one best image."""
    differing_sizes: int
    """Records whose images differ in height or width."""

    @property
    def lines(self) -> list[str]:
        sizes = ", ".join(f"{count} with {n}" for n, count in sorted(self.sizes.items()))
        whose = f"{self.prompts} prompts and {self.users} users"
        lines = [
            f"{self.records} records of {whose}: {self.pictures} pictures ({sizes})",
            f"a random choice is right in {self.chance:.2%}",
        ]
        if self.sizes.get(1):
            lines.append(f"{self.sizes[1]} records have one picture: they teach nothing and training leaves them out")
        if self.ties:
            lines.append(f"{self.ties} records have no single best picture")
        if self.differing_sizes:
            lines.append(f"{self.differing_sizes} records have pictures of different sizes")
        if self.broken:
            lines.append(f"{len(self.broken)} pictures are missing or broken; {self.broken[0]}")
        return lines


def check_preferences(records: Sequence[PreferenceRecord], folder: Path, decode: bool = False) -> PreferenceReport:
    """Read every image's header, or with `decode` its pixels."""
    broken: list[str] = []
    differing = 0
    for record in records:
        sizes = set()
        for name in record.pictures:
            try:
                if decode:
                    read_image(folder / name, folder)
                sizes.add(read_header(folder / name, folder).size)
            except BrokenImageError as error:
                broken.append(str(error))
        differing += len(sizes) > 1
    return PreferenceReport(
        records=len(records),
        pictures=sum(len(record.pictures) for record in records),
        sizes=dict(Counter(len(record.pictures) for record in records)),
        users=len({record.user for record in records if record.user}),
        prompts=len({record.prompt for record in records}),
        chance=sum(record.chance for record in records) / len(records),
        broken=broken,
        ties=sum(1 for record in records if record.chance * len(record.pictures) > 1.5),
        differing_sizes=differing,
    )


def leakage(train: Sequence[PreferenceRecord], test: Sequence[PreferenceRecord]) -> str | None:
    """A sentence if users or prompts are in both parts."""
    shared = sorted(shared_keys(train, test))
    if not shared:
        return None
    return f"{len(shared)} users or prompts are in both files, such as {shared[0]!r}: test accuracy would be too high"
