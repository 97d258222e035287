"""Parsers of data folders, prompt files and suites."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dpt.cli.common.console import read_prompts as read_prompt_file
from dpt.data.files.annotations import read_captions, read_expressions, read_prompts
from dpt.data.files.hard_negatives import HardNegativeFiles, HardNegativeFolder, HardNegativeTable
from dpt.data.files.reading import CAPTIONS_OF_IMAGES, DataRoot, read_negative_types
from dpt.data.folder import METADATA, read_picture_folder
from dpt.data.preference.records import read_preferences
from dpt.evaluation.suites import registry
from dpt.score.folder_scores import read_scores, select
from tests.data.files.conftest import SAMPLE
from tests.fuzz.mutations import DEEP, DIGITS, mutate_bytes, mutate_fields, mutate_json, mutate_json_line
from tests.fuzz.parser import Parser, Target

ROOT = DataRoot(SAMPLE)
JSON_MUTATIONS = (mutate_json, mutate_json, mutate_bytes)
LINE_MUTATIONS = (mutate_json_line, mutate_json_line, mutate_bytes)
HOSTILE_JSON = (
    b"",
    b"\n",
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    DIGITS.encode(),
    b"1e999",
    b"NaN",
    b"[NaN]",
    b"null",
    b'"\\ud800"',
    b"[]",
    b"{}",
    b'{"images": [], "annotations": []}',
    b"\xff\xfe[\x00]\x00",
    b"\xef\xbb\xbf{}",
    b'{"a": ' + DIGITS.encode() + b"}",
    b'["' + b"a" * 1_000_000 + b'"]',
    b'{"a": 1, "a": 2}',
    b"[" + b"[]," * 50_000 + b"[]]",
)
GENEVAL = (
    {
        "tag": "two_object",
        "include": [{"class": "car", "count": 1}, {"class": "dog", "count": 1}],
        "prompt": "a car and a dog",
    },
    {
        "tag": "counting",
        "include": [{"class": "bus", "count": 2}],
        "exclude": [{"class": "bus", "count": 3}],
        "prompt": "two buses",
    },
    {
        "tag": "position",
        "prompt": "a dog left of a cat",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    },
    {"tag": "color_attr", "prompt": "a red car", "include": [{"class": "car", "count": 1, "color": "red"}]},
)
NSS = (
    {"captions": "three red cars", "name": "numerical", "bboxes": [[1, 2, 3, 4]]},
    {"caption": "a dog left of a cat", "category": "spatial"},
    {"captions": "a city at night"},
)
PROMPTS = (
    {"prompt": "a red circle", "id": "first", "category": "shapes"},
    {"prompt": "nothing", "id": 7},
    {"prompt": "é"},
)


def file_parser(
    name: str, file: Path, read: Callable[[Path], object], mutations: tuple[object, ...] = JSON_MUTATIONS
) -> Parser:
    def make(folder: Path) -> Target:
        copy = folder / file.name
        return Target(copy, [file.read_bytes()], lambda: read(copy))

    return Parser(name, make, mutations, HOSTILE_JSON)  # type: ignore[arg-type]


def lines_parser(name: str, file_name: str, sample: bytes, read: Callable[[Path], object], mutations: object) -> Parser:
    def make(folder: Path) -> Target:
        file = folder / file_name
        return Target(file, [sample], lambda: read(file))

    return Parser(name, make, mutations, HOSTILE_JSON)  # type: ignore[arg-type]


def all_rows(negatives: HardNegativeFiles) -> None:
    for id_ in negatives.ids:
        negatives.where(id_)
        negatives.row(id_)


def index_of_captions(folder: Path) -> Target:
    source, file = ROOT.hard_negatives("train"), folder / CAPTIONS_OF_IMAGES
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return Target(file, [(source / CAPTIONS_OF_IMAGES).read_bytes()], lambda: all_rows(HardNegativeFolder(folder)))


def one_caption(folder: Path) -> Target:
    sample = (ROOT.hard_negatives("train") / "00002.json").read_bytes()
    (folder / CAPTIONS_OF_IMAGES).write_text(json.dumps({json.loads(sample)["filepath"]: [2]}))
    return Target(folder / "00002.json", [sample], lambda: all_rows(HardNegativeFolder(folder)))


def jsonl(rows: tuple[dict[str, object], ...]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def suite(name: str) -> Callable[[Path], object]:
    return lambda file: registry.load(f"{name}={file}").hash


TABLE = ROOT.hard_negatives_table("val")
QUOTED = b'filepath\ttitle\tneg_caption\tneg_image\na.jpg\t"a ""red"" car"\t"[\'a dog\']"\t[\'b.jpg\']\n'


def table(folder: Path) -> Target:
    file = folder / TABLE.name
    return Target(file, [TABLE.read_bytes(), QUOTED], lambda: all_rows(HardNegativeTable(file)))


PICTURES = ({"file_name": "a.png", "text": "a red cup", "weight": 0.5}, {"file_name": "a.png", "prompt": "a cup"})


def picture_folder(folder: Path) -> Target:
    (folder / "a.png").touch()
    return Target(folder / METADATA, [jsonl(PICTURES)], lambda: read_picture_folder(folder))


CHOICES = (
    {"id": 1, "prompt": "a cup", "file_path": ["a.png", "b.png"], "human_preference": 1, "user_hash": "9f"},
    {"prompt": "a cup", "image_path": ["a.png", "b.png", "c.png"], "rank": [2, 1, 3]},
    {"caption": "a cup", "image_0": "a.png", "image_1": "b.png", "label_0": 0.5, "label_1": 0.5, "user_id": 3},
)
SCORES = (
    {"id": 0, "prompt": "a cup", "score": 20.5, "blurry": False, "file_name": "a.png"},
    {"id": 3, "prompt": "a cup", "score": 21},
)


def read_all_scores(file: Path) -> object:
    return select(read_scores(file))


PARSERS = (
    lines_parser("preferences", "train.json", json.dumps(CHOICES).encode(), read_preferences, JSON_MUTATIONS),
    lines_parser("preferences (JSON lines)", "train.jsonl", jsonl(CHOICES), read_preferences, LINE_MUTATIONS),
    lines_parser("preference scores", "scores.jsonl", jsonl(SCORES), read_all_scores, LINE_MUTATIONS),
    Parser("captions of a folder of pictures (metadata.jsonl)", picture_folder, LINE_MUTATIONS, HOSTILE_JSON),
    file_parser("expressions (MDETR)", ROOT.expressions("refcoco", "val"), read_expressions),
    file_parser("captions (COCO)", ROOT.captions("val2014"), read_captions),
    file_parser("prompts of a data folder", ROOT.prompts, read_prompts),
    file_parser(
        "types of negatives", ROOT.negative_types, lambda file: read_negative_types(file, "train"), LINE_MUTATIONS
    ),
    Parser(
        "hard negatives (TSV)",
        table,
        (mutate_fields, mutate_bytes),
        (
            b"",
            b"filepath\ttitle\tneg_caption\tneg_image\n",
            b'filepath\ttitle\tneg_caption\tneg_image\n"' + b"a\n" * 300_000,
            QUOTED[:43] + b"a.jpg\tx\t['" + b"\\x41" * 100_000 + b"']\t['b.jpg']\n",
            b"filepath\ttitle\tneg_caption\tneg_image\n" + b'"\n' * 20_000,
        ),
    ),
    Parser("index of captions", index_of_captions, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("negatives by caption", one_caption, JSON_MUTATIONS, HOSTILE_JSON),
    lines_parser(
        "prompts (text)", "prompts.txt", "a red circle\n\n two dogs \né\n".encode(), read_prompt_file, (mutate_bytes,)
    ),
    lines_parser("prompts (JSON lines)", "prompts.jsonl", jsonl(PROMPTS), read_prompt_file, LINE_MUTATIONS),
    lines_parser("suite: GenEval", "metadata.jsonl", jsonl(GENEVAL), suite("geneval"), LINE_MUTATIONS),
    lines_parser("suite: COCO-NSS1K", "nss.json", json.dumps(NSS).encode(), suite("coco-nss1k"), JSON_MUTATIONS),
    lines_parser("suite: prompts", "prompts.jsonl", jsonl(PROMPTS), suite("prompts"), LINE_MUTATIONS),
)
