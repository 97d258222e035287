"""What training and validation can ask for of a data folder: pictures and texts, each once, in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass

from tqdm import tqdm

from dpt.data.faults import DataFault
from dpt.data.files.expressions import read_expressions
from dpt.data.files.hard_negatives import open_hard_negatives
from dpt.data.files.root import DataRoot
from dpt.data.mirror import mirrored_text
from dpt.data.scenes.published import REC


@dataclass(frozen=True)
class Wanted:
    pictures: list[str]
    """train2014/… and val2014/…, as they lie under the folder of images."""
    texts: list[str]


def wanted(root: DataRoot, texts: bool, random_flip: bool) -> Wanted:
    """Whatever is there of the published files counts, all sets of expressions and both parts of the negatives."""
    if not root.path.is_dir():
        raise DataFault(f"the data folder {root.path} does not exist")
    pictures: set[str] = set()
    said: set[str] = set()
    for file in sorted((root.path / REC).glob("finetune_*.json")):
        for one in read_expressions(file):
            pictures.add(f"train2014/{one.file_name}")
            said.add(one.text)
    for part in ("train", "val"):
        if not (root.hard_negatives(part).is_dir() or root.hard_negatives_table(part).is_file()):
            continue
        negatives = open_hard_negatives(root, part)
        for id_ in tqdm(negatives.ids, desc=f"reading {part} captions", unit="caption", leave=False, disable=None):
            row = negatives.row(id_)
            pictures.update(f"{part}2014/{name}" for name in (row.file_name, *row.images))
            said.update((row.title, *row.captions) if texts else ())
    if not pictures:
        raise DataFault(f"{root.path} has neither expressions nor captions with hard negatives to cache pictures for")
    if not texts:
        return Wanted(sorted(pictures), [])
    if random_flip:
        said.update([other for text in said if (other := mirrored_text(text)) is not None])
    return Wanted(sorted(pictures), sorted(said))
