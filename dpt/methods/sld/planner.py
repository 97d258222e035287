"""Planners, which parse prompts and plan layouts: by rules, or by a language model with the prompts in `prompts/`."""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dpt.claims.controller import propose
from dpt.claims.facts import Noun
from dpt.claims.instructions import Instruction, parse_instruction
from dpt.claims.layout import Layout
from dpt.claims.parse import ParsedPrompt, parse_prompt
from dpt.claims.replies import CONTROLLER_SCHEMA, PARSER_SCHEMA, ReplyError, layout_from_reply, parsed_from_reply
from dpt.errors import UserError
from dpt.files import atomic_file
from dpt.untrusted import parse_json, read_json_object, read_text

T = TypeVar("T")

Message = dict[str, str]

ATTEMPTS = 3

LONGEST_REPLY = 2**20

KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"

DEFAULT_URL = "https://api.openai.com/v1"


class ChatError(UserError):
    """A permanent failure: the model refuses, or is not set up. Retrying does not help."""


class ChatUnavailable(UserError):
    """A transient failure: a timeout, a full queue, a server error."""


class ChatClient(Protocol):
    @property
    def identity(self) -> str:
        """The model's name, without secrets."""
        ...

    def reply(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        """One reply, as the model wrote it. `schema` describes the JSON that is expected."""
        ...


@dataclass
class OpenAIChat:
    """A server with OpenAI's chat route: OpenAI, vLLM, llama.cpp, Ollama."""

    model: str
    base_url: str = DEFAULT_URL
    key: str = field(default="", repr=False)
    timeout: float = 60.0
    format: int = 0
    """Index of the response format in use: json_schema, json_object, plain text. It falls back in this order."""

    @property
    def identity(self) -> str:
        return self.model

    def reply(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        formats: list[dict[str, Any]] = [
            {"response_format": {"type": "json_schema", "json_schema": {"name": "plan", "schema": schema}}},
            {"response_format": {"type": "json_object"}},
            {},
        ]
        while True:
            body = {"model": self.model, "messages": list(messages), "temperature": 0, "seed": 0}
            status, content = self._post({**body, **formats[self.format]})
            if status in (400, 422) and self.format < len(formats) - 1:
                self.format += 1  # the server does not know this response format
                continue
            return self._text(status, content)

    def _post(self, body: Mapping[str, Any]) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = f"{self.base_url.rstrip('/')}/chat/completions"
        if not address.startswith(("http://", "https://")):
            raise ChatError(f"the address of the language model must begin with http:// or https://: {self.base_url}")
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return response.status, response.read(LONGEST_REPLY)
        except urllib.error.HTTPError as error:
            return error.code, error.read(LONGEST_REPLY)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            why = f"no answer within {self.timeout:g} seconds" if late else str(reason)
            raise ChatUnavailable(f"the language model at {self.base_url} cannot be reached: {why}") from None

    def _text(self, status: int, content: bytes) -> str:
        where = f"the language model {self.model} at {self.base_url}"
        if status in (401, 403):
            raise ChatError(f"{where} refuses the key (status {status}): set {KEY_VARIABLE}")
        if status == 404:
            raise ChatError(f"{where} does not exist (status 404): check the model's name and {URL_VARIABLE}")
        if status == 429 or status >= 500:
            raise ChatUnavailable(f"{where} is busy or failing (status {status})")
        if status >= 300:
            raise ChatError(f"{where} refuses the request (status {status}): {_message(content)}")
        try:
            text = parse_json(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise ChatUnavailable(f"{where} answers something else than a chat completion") from None
        return text if isinstance(text, str) else ""


def _message(content: bytes) -> str:
    try:
        error = parse_json(content).get("error")
    except (ValueError, AttributeError):
        return "no reason given"
    return str(error.get("message") if isinstance(error, dict) else error)[:200]


@dataclass
class TransformersChat:
    """A local instruction model, decoded greedily."""

    folder: str
    max_new_tokens: int = 1024
    _loaded: Any = None

    @property
    def identity(self) -> str:
        return Path(self.folder).name

    def reply(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        import torch

        if self._loaded is None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self.folder)
                self._loaded = tokenizer, AutoModelForCausalLM.from_pretrained(self.folder).eval()
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ChatError(f"{self.folder} holds no causal language model with a tokenizer: {reason}") from None
        tokenizer, model = self._loaded
        if tokenizer.chat_template is None:
            raise ChatError(f"{self.folder} has no chat template: use a model that is tuned for instructions")
        inputs = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


@dataclass
class ReplayChat:
    """Replays recorded replies in order."""

    replies: list[str]
    identity: str = "replay"
    used: int = 0

    @classmethod
    def load(cls, file: Path) -> ReplayChat:
        """A file that `Recorded` wrote."""
        try:
            rows = [parse_json(line) for line in read_text(file).splitlines() if line.strip()]
            return cls([str(row["reply"]) for row in rows if row.get("reply") is not None])
        except OSError as error:
            raise ChatError(f"cannot read the recorded replies {file}: {error.strerror}") from None
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ChatError(f'{file} holds no recorded replies: each line is a JSON object with "reply"') from None

    def reply(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        if self.used >= len(self.replies):
            raise ChatError(f"there are only {len(self.replies)} recorded replies, and another one is needed")
        self.used += 1
        return self.replies[self.used - 1]


@dataclass
class Recorded:
    """Wraps a client with a cache on disk and a log file of every exchange."""

    chat: ChatClient
    cache: Path | None = None
    log: Path | None = None

    @property
    def identity(self) -> str:
        return self.chat.identity

    def reply(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        file = self.cache / f"{self._hash(messages, schema)}.json" if self.cache else None
        if file is not None and file.exists():
            text = read_json_object(file).get("reply")
            if isinstance(text, str):
                return self._logged(messages, text, "cache")
        try:
            text = self.chat.reply(messages, schema)
        except UserError as error:
            self._logged(messages, None, str(error))
            raise
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as work:
                work.write_text(json.dumps({"model": self.identity, "reply": text}), encoding="utf-8")
        return self._logged(messages, text, "model")

    def _hash(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        content = json.dumps([self.identity, list(messages), schema], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _logged(self, messages: Sequence[Message], reply: str | None, source: str) -> Any:
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            row = {"model": self.identity, "messages": list(messages), "reply": reply, "source": source}
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        return reply


def query(
    chat: ChatClient,
    messages: Iterable[Message],
    schema: Mapping[str, Any],
    read: Callable[[str], T],
    pause: float = 1.0,
) -> T:
    """The first valid reply of at most three attempts. The model gets the error of an invalid one.

    `read` turns a reply into a result or raises `ReplyError`. `ChatError` ends it at once.
    """
    conversation = list(messages)
    problem: UserError | None = None
    for attempt in range(ATTEMPTS):
        try:
            reply = chat.reply(conversation, schema)
        except ChatUnavailable as error:
            problem = error
            if attempt < ATTEMPTS - 1:
                time.sleep(pause * 2**attempt)
            continue
        try:
            return read(reply)
        except ReplyError as error:
            problem = error
            conversation += [
                {"role": "assistant", "content": reply},
                {"role": "user", "content": f"This reply cannot be used: {error}. Reply again with the JSON object."},
            ]
    if isinstance(problem, ChatUnavailable):
        raise problem
    raise ReplyError(f"{chat.identity} gave no valid plan in {ATTEMPTS} attempts: {problem}")


def open_chat(
    backend: str, model: str = "", base_url: str | None = None, key: str | None = None, timeout: float = 60.0
) -> ChatClient:
    """backend: openai, transformers (model: a folder) or replay (model: a file)."""
    if backend == "openai":
        if not model:
            raise ChatError("the backend openai needs the name of a model: --llm_model")
        address = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
        return OpenAIChat(model, address, key or os.environ.get("OPENAI_API_KEY", ""), timeout)
    if backend == "transformers":
        if not Path(model).is_dir():
            raise ChatError(f"the backend transformers needs a model folder, and there is none at {model!r}")
        return TransformersChat(model)
    if backend == "replay":
        if not model:
            raise ChatError("the backend replay needs a file of recorded replies: --llm_model")
        return ReplayChat.load(Path(model))
    raise ChatError(f"there is no language model backend {backend!r}: use rules, openai, transformers or replay")


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
