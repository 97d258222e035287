"""Planners, which parse prompts and plan layouts: by rules, or by a language model with the prompts in `prompts/`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dpt.claims.controller import propose
from dpt.claims.facts import Noun
from dpt.claims.instructions import Instruction, parse_instruction
from dpt.claims.layout import Layout
from dpt.claims.parse import ParsedPrompt, parse_prompt
from dpt.claims.replies import CONTROLLER_SCHEMA, PARSER_SCHEMA, layout_from_reply, parsed_from_reply
from dpt.methods.sld.llm import ChatClient, query

PROMPTS = Path(__file__).with_name("prompts")

PARSER, CONTROLLER, EDITOR = "parser-1", "controller-1", "editor-1"
"""Versioned prompt files: a changed wording needs a new file."""


class RulePlanner:
    """Offline and exact, for the prompts and instructions that the rules know."""

    identity = "rules"

    def parse(self, prompt: str) -> ParsedPrompt:
        return parse_prompt(prompt)

    def plan(self, parsed: ParsedPrompt, layout: Layout) -> Layout:
        return propose(parsed, layout)

    def instruction(self, text: str) -> Instruction:
        return parse_instruction(text)


@dataclass(frozen=True)
class LLMPlanner:
    """Prompts and instructions of any wording, by a language model."""

    chat: ChatClient

    @property
    def identity(self) -> str:
        return f"{self.chat.identity} {PARSER} {CONTROLLER} {EDITOR}"

    def parse(self, prompt: str) -> ParsedPrompt:
        messages = _messages(PARSER, f"Prompt: {json.dumps(prompt)}")
        return query(self.chat, messages, PARSER_SCHEMA, lambda reply: parsed_from_reply(reply, prompt))

    def plan(self, parsed: ParsedPrompt, layout: Layout) -> Layout:
        return self._layout(CONTROLLER, "Prompt", parsed.text, parsed.nouns, layout)

    def instruction(self, text: str) -> Instruction:
        parsed = self.parse(text)
        nouns = (*parsed.nouns,)
        return Instruction(text, nouns, lambda layout: self._layout(EDITOR, "Instruction", text, nouns, layout))

    def _layout(self, prompt: str, label: str, text: str, nouns: tuple[Noun, ...], layout: Layout) -> Layout:
        known = {noun.shape or "" for noun in nouns} | {thing.noun.shape or "" for thing in layout}
        messages = _messages(prompt, f"{label}: {json.dumps(text)}. Objects: {json.dumps(_as_objects(layout))}")
        return query(self.chat, messages, CONTROLLER_SCHEMA, lambda reply: layout_from_reply(reply, layout, known))


Planner = RulePlanner | LLMPlanner


def _as_objects(layout: Layout) -> list[dict[str, object]]:
    return [
        {
            "id": thing.id,
            "noun": thing.noun.shape,
            "attribute": thing.noun.colour,
            "box": [round(v, 3) for v in (thing.box.x0, thing.box.y0, thing.box.width, thing.box.height)],
        }
        for thing in layout
    ]


@cache
def _system(name: str) -> str:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip()


def _messages(name: str, content: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": _system(name)}, {"role": "user", "content": content}]
