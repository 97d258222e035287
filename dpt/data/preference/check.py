"""Counts what preference records hold and what is wrong with them, before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpt.data.images import read_header, read_image
from dpt.data.preference.records import PreferenceRecord
from dpt.data.preference.split import shared_keys
from dpt.errors import BrokenImageError


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
