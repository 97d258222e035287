"""Language models as planners: replies of every kind; a loopback server that answers well, badly, slowly, or not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dpt.claims.facts import Absent, Count, Noun
from dpt.claims.layout import Layout, PlacedObject, box_at, changes, diff, numbered
from dpt.claims.replies import ReplyError, layout_from_reply, parsed_from_reply
from dpt.errors import UserError
from dpt.methods.sld.planner import (
    ATTEMPTS,
    KEY_VARIABLE,
    PROMPTS,
    URL_VARIABLE,
    ChatError,
    LLMPlanner,
    OpenAIChat,
    Recorded,
    ReplayChat,
    open_chat,
    query,
)

KEY = "sk-very-secret"

PARSED = {"objects": [{"noun": "dog", "attributes": ["red", None]}], "background": "a photo", "negation": []}


def test_prompts_are_files_with_versions() -> None:
    assert sorted(file.stem for file in PROMPTS.iterdir()) == ["controller-1", "editor-1", "parser-1"]


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(PARSED),
        f"```json\n{json.dumps(PARSED, indent=2)}\n```",
        f"Sure! The set {{a, b}} aside, here it is: {json.dumps(PARSED)} Anything else?",
        str(PARSED),  # as Python writes it
        "Reasoning: two dogs.\nObjects: [('dog', ['red', None])]\nBackground: a photo\nNegation: ",
        "**Objects:** [['dog', ['red', null]]]\n**Background:** a photo [in colour]\n**Negation:**",
        "Objects: first.\nObjects: [\n  ('dog', ['red', None]),\n]\nBackground: a photo ] of\nNegation: none",
    ],
)
def test_parser_replies_are_read_in_every_form(reply: str) -> None:
    parsed = parsed_from_reply(reply, "a red dog and a dog")
    assert parsed.objects == (Noun("red", "dog"), Noun(None, "dog"))
    assert parsed.background.startswith("a photo")


def test_negated_objects_are_absent() -> None:
    reply = "Objects: [('cat', [None]), ('palm tree', ['green'])]\nBackground: x\nNegation: no cats"
    parsed = parsed_from_reply(reply, "a green palm tree, no cats")
    assert parsed.absent == (Noun(None, "cat"),)
    assert parsed.facts == (Count(Noun("green", "palm tree"), 1), Absent(Noun(None, "cat")))


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "neither a JSON object"),
        ("no", "neither"),
        ("Objects: none", "no list follows"),
        ("Objects: [(", "cannot be read"),
        ('{"objects": 3}', "must be a list"),
        ('{"objects": [{"noun": 3, "attributes": [null]}]}', "short text"),
        ('{"objects": [{"noun": "a", "attributes": "red"}]}', "must be a list"),
        ('{"objects": ["dog"]}', "noun and a list"),
        (json.dumps({"objects": [{"noun": "dog", "attributes": [None] * 50}]}), "at most"),
        ("[" * 5000, "neither"),
        ('{"objects": ' + "[" * 5000, "neither"),
    ],
)
def test_other_parser_replies_are_refused_with_a_reason(reply: str, why: str) -> None:
    with pytest.raises(ReplyError, match=why):
        parsed_from_reply(reply, "x")


DOG, CAT = numbered(
    [
        PlacedObject("", Noun("red", "dog"), box_at((0.3, 0.3), 0.3, 0.3)),
        PlacedObject("", Noun(None, "cat"), box_at((0.7, 0.7), 0.3, 0.3)),
    ]
)


def goal(reply: str) -> Layout:
    return layout_from_reply(reply, (DOG, CAT), {"dog", "cat"})


@pytest.mark.parametrize(
    ("reply", "plan"),
    [
        (
            '{"objects": [{"id": "red dog #1", "noun": "dog", "attribute": "red", "box": [0.5, 0.15, 0.3, 0.3]}]}',
            ["move red dog #1 right", "delete cat #1"],
        ),
        (
            "Updated Objects: [('red dog #1', [0.15, 0.15, 0.3, 0.3]), ('black cat #1', [0.55, 0.55, 0.3, 0.3])]",
            ["make cat #1 a black cat"],
        ),
        (
            "reasons [1]\n**Updated Objects:** [['red dog #1', [.15, .15, .3, .3]], ['cat #1', [.55, .55, .3, .3]],"
            " ['cat #2', [0, 0, .2, .2]]]",
            ["add a cat at the top left"],
        ),
        (
            '{"objects": [{"id": "red dog #1", "noun": "dog", "attribute": "red", "box": [0.15, 0.15, 0.3, 0.3]}, {"id": "cat #1", "noun": "cat", "attribute": "", "box": [0.8, 0.8, 0.5, 0.5]}]}',  # noqa: E501
            ["make cat #1 smaller"],
        ),
        ('{"objects": []}', ["delete red dog #1", "delete cat #1"]),
        (
            "Updated Objects: [('cat #1', [0, 0, .2, .2]), ('cat #1', [.8, 0, .2, .2])]",
            ["delete red dog #1", "make cat #1 smaller", "add a cat at the top left"],
        ),
    ],
)
def test_controller_replies_become_plans(reply: str, plan: list[str]) -> None:
    assert [edit.in_words for edit in changes(diff((DOG, CAT), goal(reply)))] == plan


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("Updated Objects: [('cat #1', [0, 0, 1])]", "four numbers"),
        ("Updated Objects: [('cat #1', [0, 0, 'a', 1])]", "four numbers"),
        ("Updated Objects: [('cat #1', [2, 2, 1, 1])]", "no area"),
        ("Updated Objects: [('cat #1', [0.5, 0.5, 0, 0])]", "no area"),
        ("Updated Objects: [('cat #1', [1e999, 0, 1, 1])]", "finite"),
        ("Updated Objects: [('#1', [0, 0, 1, 1])]", "no name"),
        ("Updated Objects: [('cat #1', [0, 0, 1, 1])", "cannot be read"),
        ("Objects: []", "neither"),
        ('{"objects": [{"noun": "cat", "box": [true, 0, 1, 1]}]}', "four numbers"),
    ],
)
def test_other_controller_replies_are_refused_with_a_reason(reply: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        goal(reply)


@dataclass
class Server:
    """Answers chat requests as its script says: a text, a status, or seconds to wait."""

    script: list[Any]
    schema_statuses: dict[str, int] = field(default_factory=dict)
    """Status by response format, for servers that do not know one."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
        self.requests.append(body)
        self.keys.append(key)
        kind = body.get("response_format", {}).get("type", "text")
        if kind in self.schema_statuses:
            return self.schema_statuses[kind], {"error": {"message": f"unknown format {kind}"}}
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, float):
            time.sleep(step)
            step = "late"
        if isinstance(step, int):
            return step, {"error": {"message": "no"}}
        return 200, {"choices": [{"message": {"content": step}}]}


@contextmanager
def serving(*script: Any, **more: Any) -> Iterator[Server]:
    server = Server(list(script), **more)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            status, content = server.answer(body, self.headers.get("Authorization"))
            data = json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


GOOD = json.dumps(PARSED)

SCHEMA: dict[str, Any] = {"type": "object"}


def read(reply: str) -> Any:
    return parsed_from_reply(reply, "x").objects


def run_query(server: Server, timeout: float = 5.0) -> Any:
    chat = OpenAIChat("m", server.url, KEY, timeout)
    return query(chat, [{"role": "user", "content": "hello"}], SCHEMA, read, pause=0.0)


def test_a_good_server_is_called_once_with_the_schema_and_the_key() -> None:
    with serving(GOOD) as server:
        assert run_query(server) == (Noun("red", "dog"), Noun(None, "dog"))
    assert len(server.requests) == 1
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert server.requests[0]["temperature"] == 0
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(("unknown", "calls"), [(("json_schema",), 2), (("json_schema", "json_object"), 3)])
def test_formats_that_a_server_does_not_know_are_left_out(unknown: tuple[str, ...], calls: int) -> None:
    with serving(GOOD, schema_statuses=dict.fromkeys(unknown, 400)) as server:
        assert run_query(server)
    assert len(server.requests) == calls


def test_an_invalid_reply_is_returned_to_the_model_with_the_reason() -> None:
    with serving("I cannot", '{"objects": 1}', GOOD) as server:
        assert run_query(server)
    last = server.requests[-1]["messages"]
    assert [message["role"] for message in last] == ["user", "assistant", "user", "assistant", "user"]
    assert "must be a list" in last[-1]["content"]


def test_three_invalid_replies_are_one_sentence() -> None:
    with serving("I cannot") as server, pytest.raises(ReplyError, match="no valid plan in 3 attempts"):
        run_query(server)
    assert len(server.requests) == ATTEMPTS


@pytest.mark.parametrize(("status", "why"), [(401, KEY_VARIABLE), (403, "refuses the key"), (404, "does not exist")])
def test_refusals_end_at_once_without_the_key_in_the_message(status: int, why: str) -> None:
    with serving(status) as server, pytest.raises(ChatError, match=why) as error:
        run_query(server)
    assert len(server.requests) == 1
    assert KEY not in str(error.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_and_failing_servers_are_called_again(status: int) -> None:
    with serving(status, GOOD) as server:
        assert run_query(server)
    with serving(status) as server, pytest.raises(UserError, match=f"busy or failing .status {status}"):
        run_query(server)
    assert len(server.requests) == ATTEMPTS


def test_a_request_to_a_slow_server_times_out() -> None:
    with serving(1.5) as server, pytest.raises(UserError, match=r"no answer within 0\.1 seconds"):
        run_query(server, timeout=0.1)


def test_no_server_and_no_http_are_one_sentence_each() -> None:
    for url, why in (("http://127.0.0.1:9/v1", "cannot be reached"), ("file:///etc", "must begin with http")):
        with pytest.raises(UserError, match=why):
            query(OpenAIChat("m", url, KEY), [], SCHEMA, read, pause=0.0)


def test_repeated_requests_come_from_the_cache_and_every_exchange_is_logged(tmp_path: Path) -> None:
    with serving(GOOD) as server:
        chat = Recorded(OpenAIChat("m", server.url, KEY), tmp_path / "cache", tmp_path / "log.jsonl")
        planner = LLMPlanner(chat)
        assert planner.parse("two dogs") == planner.parse("two dogs")
        assert len(server.requests) == 1
        planner.parse("three dogs")
        assert len(server.requests) == 2
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["model", "cache", "model"]
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(KEY in text for text in written)
    assert KEY not in repr(chat)
    replay = ReplayChat.load(tmp_path / "log.jsonl")
    assert LLMPlanner(replay).parse("two dogs").objects == (Noun("red", "dog"), Noun(None, "dog"))


def test_a_planner_plans_and_edits(tmp_path: Path) -> None:
    cat = {"id": "cat #1", "noun": "cat", "attribute": None, "box": [0.55, 0.55, 0.3, 0.3]}
    answer = json.dumps({"reasoning": "", "objects": [cat]})
    planner = LLMPlanner(ReplayChat([answer, GOOD, answer]))
    parsed = parsed_from_reply(GOOD, "a cat")
    assert [e.in_words for e in changes(diff((DOG, CAT), planner.plan(parsed, (DOG, CAT))))] == ["delete red dog #1"]
    instruction = planner.instruction("take the dog away")
    assert [t.id for t in instruction.apply((DOG, CAT))] == ["cat #1"]
    with pytest.raises(ChatError, match="only 3 recorded replies"):
        planner.parse("more")


def test_backends_are_opened_by_name_and_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv(URL_VARIABLE, "http://localhost:8080/v1")
    chat: Any = open_chat("openai", "m")
    assert (chat.base_url, chat.key, chat.identity) == ("http://localhost:8080/v1", KEY, "m")
    assert open_chat("openai", "m", "http://other/v1").base_url == "http://other/v1"  # type: ignore[attr-defined]
    (tmp_path / "bad.jsonl").write_text("[]\n")
    for backend, model, why in (
        ("openai", "", "name of a model"),
        ("transformers", "nowhere", "model folder"),
        ("x", "", "no language model backend"),
        ("replay", str(tmp_path / "none"), "cannot read"),
        ("replay", str(tmp_path / "bad.jsonl"), "no recorded replies"),
    ):
        with pytest.raises(ChatError, match=why):
            open_chat(backend, model)
