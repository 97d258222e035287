"""The types of hard negatives, where they are known: exports of rendered scenes have a file that says them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpt.data.faults import DataFault
from dpt.data.files.reading import Row, read_bytes
from dpt.plain_json import parse_json


@dataclass(frozen=True)
class NegativeTypes:
    captions: tuple[str, ...]
    images: tuple[str, ...]


def read_negative_types(file: Path, part: str) -> dict[int, NegativeTypes]:
    """By caption id; empty if there is no such file."""
    if not file.exists():
        return {}
    found: dict[int, NegativeTypes] = {}
    for nth, line in enumerate(read_bytes(file).splitlines(), 1):
        where = f"{file}, line {nth}"
        try:
            row = Row(parse_json(line.decode("utf-8"), half_characters=True), where)
        except ValueError as error:
            raise DataFault(f"{where}, is not valid JSON: {error}") from None
        if row.text("part") == part:
            types = Row(row.get("types", dict), where)
            found[row.get("id", int)] = NegativeTypes(types.texts("neg_caption"), types.texts("neg_image"))
    return found
