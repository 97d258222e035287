"""Parsers of correction and editing: the published demo's files, and replies of language models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dpt.claims.facts import Noun
from dpt.claims.layout import PlacedObject, box_at, numbered
from dpt.claims.replies import layout_from_reply, parsed_from_reply
from dpt.errors import UserError
from dpt.methods.sld.planner import ReplayChat
from dpt.methods.sld.record import read_config, read_entries
from tests.fuzz.data_files import HOSTILE_JSON, JSON_MUTATIONS, LINE_MUTATIONS, jsonl, lines_parser
from tests.fuzz.mutations import DEEP, mutate_bytes
from tests.fuzz.parser import Parser, Target

ENTRIES = [
    {
        "input_fname": "a",
        "output_dir": "a",
        "prompt": "two dogs",
        "generator": "dalle",
        "llm_parsed_prompt": {"objects": [["dog", [None, "red"]]], "bg_prompt": "a photo", "neg_prompt": ""},
        "llm_layout_suggestions": [["dog #1", [0.1, 0.1, 0.3, 0.3]], ["red dog #1", [0.5, 0.5, 0.3, 0.3]]],
    },
    {"input_fname": "b", "output_dir": "b", "prompt": "move the dog left"},
]

CONFIG = b"""[openai]
model = "gpt-4"
[dalle]
attr_detection_threshold = 0.6
[SLD]
default_seed = 78
frozen_step_ratio = 0.5
SAM_refine_dilate = 3
"""

REPLIES = (
    b'{"objects": [{"noun": "dog", "attributes": [null, "red"]}], "background": "a photo", "negation": []}',
    b"Objects: [('dog', [None, 'red'])]\nBackground: a photo\nNegation: cats",
)

LAYOUTS = (
    b'{"reasoning": "", "objects": [{"id": "dog #1", "noun": "dog", "attribute": null, "box": [0.1, 0.1, 0.3, 0.3]}]}',
    b"Updated Objects: [('dog #1', [0.1, 0.1, 0.3, 0.3]), ('red dog #2', [.5, .5, .3, .3])]",
)

HOSTILE_REPLIES = (
    *HOSTILE_JSON,
    b"Objects: " + b"[" * DEEP,
    b"Objects: [(" + b"'a'," * 50_000 + b")]",
    b'{"objects": [' * 2_000,
    b"{" * 3_000,
)

CURRENT = numbered([PlacedObject("", Noun(None, "dog"), box_at((0.5, 0.5), 0.3, 0.3))])


def reply(name: str, samples: tuple[bytes, ...], read: Callable[[str], object]) -> Parser:
    def make(folder: Path) -> Target:
        file = folder / "reply.txt"

        def parse() -> object:
            try:
                text = file.read_bytes().decode()
            except UnicodeDecodeError:
                raise UserError("the reply is not UTF-8") from None
            return read(text)

        return Target(file, list(samples), parse)

    return Parser(name, make, (mutate_bytes,), HOSTILE_REPLIES)


PARSERS = (
    lines_parser("demo: pictures (JSON)", "data.json", json.dumps(ENTRIES).encode(), read_entries, JSON_MUTATIONS),
    lines_parser("demo: settings (INI)", "config.ini", CONFIG, read_config, (mutate_bytes,)),
    lines_parser(
        "recorded replies", "llm.jsonl", jsonl(({"reply": "a"}, {"reply": None})), ReplayChat.load, LINE_MUTATIONS
    ),
    reply("reply: objects of a prompt", REPLIES, lambda text: parsed_from_reply(text, "x")),
    reply("reply: layout", LAYOUTS, lambda text: layout_from_reply(text, CURRENT, {"dog"})),
)
