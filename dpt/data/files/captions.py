"""COCO captions, and the prompts on which alignment is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpt.data.faults import DataFault, OnFault, stop
from dpt.data.files.reading import Row, read_json, shown


@dataclass(frozen=True)
class Captions:
    file_names: dict[int, str]
    """Of each image, by its id."""
    texts: dict[int, list[str]]
    """By the id of the image."""


def read_captions(file: Path, on_fault: OnFault = stop) -> Captions:
    whole = Row(read_json(file), str(file))
    found = Captions({}, {})
    for nth, content in enumerate(whole.get("images", list)):
        try:
            row = Row(content, f"{file}, images[{nth}]")
            id_ = row.get("id", int)
            if id_ in found.file_names:
                row.fail(f"the id {id_} was there before")
            found.file_names[id_] = row.file_name("file_name")
        except DataFault as fault:
            on_fault(fault)
    seen: set[int] = set()
    for nth, content in enumerate(whole.get("annotations", list)):
        try:
            row = Row(content, f"{file}, annotations[{nth}]")
            id_, image_id = row.get("id", int), row.get("image_id", int)
            if id_ in seen:
                row.fail(f"the id {id_} was there before")
            seen.add(id_)
            if image_id not in found.file_names:
                row.fail(f"there is no image with the id {image_id}")
            found.texts.setdefault(image_id, []).append(row.text("caption"))
        except DataFault as fault:
            on_fault(fault)
    return found


def read_prompts(file: Path, on_fault: OnFault = stop) -> list[str]:
    """The prompts, under the key `captions` as published or `caption` as the published code has it."""
    content = read_json(file)
    if not isinstance(content, list):
        raise DataFault(f"{file} should hold a list of prompts, not {shown(content)}")
    prompts: list[str] = []
    for nth, each in enumerate(content):
        try:
            row = Row(each, f"{file}, row {nth}")
            prompts.append(row.text("captions" if "captions" in row else "caption").strip())
        except DataFault as fault:
            on_fault(fault)
    if not prompts:
        on_fault(DataFault(f"{file} holds no prompt that can be used"))
    return prompts
