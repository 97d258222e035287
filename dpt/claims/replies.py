"""Replies of language models: JSON, or the published text form, into parsed prompts and layouts.

Replies are not trusted: whatever does not fit raises `ReplyError`, whose message goes back to the model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpt.claims.facts import Absent, Box, Claim, Count, Noun
from dpt.claims.layout import Layout, PlacedObject, check_box, renamed_to_nearest, split_name, with_unique_ids
from dpt.claims.parse import MOST_OBJECTS, ParsedPrompt
from dpt.errors import UserError
from dpt.untrusted import literal

LONGEST_NAME = 80

LONGEST_REPLY = 50_000


class ReplyError(UserError):
    """A reply that is not a valid plan."""


TEXT = {"type": "string"}

OPTIONAL_TEXT = {"type": ["string", "null"]}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


PARSER_SCHEMA = _object(
    objects=_list(_object(noun=TEXT, attributes=_list(OPTIONAL_TEXT))), background=TEXT, negation=_list(TEXT)
)

CONTROLLER_SCHEMA = _object(
    reasoning=TEXT,
    objects=_list(_object(id=TEXT, noun=TEXT, attribute=OPTIONAL_TEXT, box=_list({"type": "number"}))),
)


def parsed_from_reply(reply: str, prompt: str) -> ParsedPrompt:
    """The parser's reply: {"objects": [...], "background": ..., "negation": [...]}, or "Objects: [...]" and so on."""
    value = _json(reply, "objects")
    if value is None:
        value = {
            "objects": _labelled_list(reply, "Objects"),
            "background": _labelled_line(reply, "Background"),
            "negation": _labelled_line(reply, "Negation"),
        }
    return parsed_from_published(
        {
            "objects": [_pair(item) for item in _items(value.get("objects"), "objects")],
            "bg_prompt": value.get("background"),
            "neg_prompt": value.get("negation"),
        },
        prompt,
    )


def parsed_from_published(value: Mapping[str, Any], prompt: str) -> ParsedPrompt:
    """The published `llm_parsed_prompt`: objects as [[noun, [attribute or null, ...]], ...], bg_prompt, neg_prompt."""
    objects: list[Noun] = []
    for item in _items(value.get("objects"), "objects"):
        if not isinstance(item, list) or len(item) != 2:
            raise ReplyError(f"an object must be a noun and a list of attributes, not {item!r}")
        noun, attributes = _name(item[0], "noun"), _items(item[1], "attributes")
        objects += [Noun(None if a is None else _name(a, "attribute"), noun) for a in attributes]
    if len(objects) > MOST_OBJECTS:
        raise ReplyError(f"at most {MOST_OBJECTS} objects are possible, not {len(objects)}")
    negation = value.get("neg_prompt")
    if not (negation is None or isinstance(negation, str | list)):
        raise ReplyError(f"what must be absent should be a text or a list, not {negation!r}")
    forbidden = negation if isinstance(negation, list) else re.split(r"[,;]", negation or "")
    absent = tuple(
        dict.fromkeys(noun for noun in objects if any(_mentions(str(words), noun) for words in forbidden if words))
    )
    present = tuple(noun for noun in objects if noun not in absent)
    counts: list[Claim] = [Count(noun, present.count(noun)) for noun in dict.fromkeys(present)]
    background = value.get("bg_prompt")
    return ParsedPrompt(
        prompt,
        "llm",
        present,
        (),
        absent,
        facts=(*counts, *(Absent(noun) for noun in absent)),
        background=background if isinstance(background, str) else "",
    )


def layout_from_reply(reply: str, current: Layout, nouns: Collection[str]) -> Layout:
    """The controller's reply: {"objects": [{"id", "noun", "attribute", "box"}]}, or "Updated Objects: [...]"."""
    value = _json(reply, "objects")
    if value is None:
        return layout_from_published(_labelled_list(reply, "Updated Objects"), current, nouns)
    objects = []
    for item in _items(value.get("objects"), "objects"):
        if not isinstance(item, dict):
            raise ReplyError(f"an object must have id, noun, attribute and box, not {item!r}")
        attribute = item.get("attribute")
        noun = Noun(None if attribute in (None, "") else _name(attribute, "attribute"), _name(item.get("noun"), "noun"))
        name = " ".join(word for word in (noun.colour, noun.shape) if word)
        objects.append((_name(item.get("id") or f"{name} #1", "id"), noun, item.get("box")))
    return _goal(objects, current)


def layout_from_published(value: Any, current: Layout, nouns: Collection[str]) -> Layout:
    """The published `llm_layout_suggestions`: [["name #id", [x, y, width, height]], ...]."""
    objects = []
    for item in _items(value, "objects"):
        if not isinstance(item, list) or len(item) != 2:
            raise ReplyError(f"an object must be a name and a box, not {item!r}")
        noun, id_ = split_name(_name(item[0], "name"), nouns)
        objects.append((id_ if "#" in id_ else f"{id_} #1", noun, item[1]))
    return _goal(objects, current)


def _goal(objects: Sequence[tuple[str, Noun, Any]], current: Layout) -> Layout:
    """The checked goal; an object with the id of a current one keeps what the reply cannot say, its size."""
    known = {thing.id: thing for thing in current}
    goal = []
    for id_, noun, numbers in objects:
        if not isinstance(numbers, list) or len(numbers) != 4 or not all(_is_number(v) for v in numbers):
            raise ReplyError(f"the box of {id_} must be four numbers x, y, width, height, not {numbers!r}")
        x, y, width, height = map(float, numbers)
        try:
            box, _ = check_box(Box(x, y, x + width, y + height), id_)
        except UserError as error:
            raise ReplyError(str(error)) from None
        size = known[id_].noun.size if id_ in known else None
        goal.append(PlacedObject(id_, Noun(noun.colour, noun.shape, size), box))
    unique, _ = with_unique_ids(tuple(goal))
    return renamed_to_nearest(current, unique)


def _json(reply: str, key: str) -> dict[str, Any] | None:
    """The first object in the reply that has the key, whatever stands around it."""
    if len(reply) > LONGEST_REPLY:
        raise ReplyError(f"the reply has {len(reply)} characters, more than {LONGEST_REPLY}")
    for start in re.finditer(r"\{", reply):
        try:
            value, _ = literal(reply, start.start())
        except ValueError:
            continue
        if isinstance(value, dict) and key in value:
            return value
    return None


def _labelled_list(reply: str, label: str) -> list[Any]:
    """The list behind the last "Label:", which may be bold."""
    places = list(re.finditer(rf"(?im)^[ \t*#]*{label}[ *]*:[ *]*", reply))
    if not places:
        raise ReplyError(f"there is neither a JSON object nor a line that starts with {label + ':'!r}")
    at = reply.find("[", places[-1].end())
    if at < 0:
        raise ReplyError(f"no list follows {label + ':'!r}")
    try:
        value, _ = literal(reply, at)
    except ValueError as error:
        raise ReplyError(f"the list behind {label + ':'!r} cannot be read: {error}") from None
    return _items(value, label)


def _labelled_line(reply: str, label: str) -> str:
    found = re.search(rf"(?im)^[ \t*#]*{label}[ *]*:[ *]*(.*)$", reply)
    return found[1].strip() if found else ""


def _pair(item: Any) -> Any:
    return [item.get("noun"), item.get("attributes")] if isinstance(item, dict) else item


def _items(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ReplyError(f"{name} must be a list, not {value!r}")
    return value


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME or not value.isprintable():
        raise ReplyError(f"the {what} must be a short text, not {value!r}")
    return " ".join(value.split())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mentions(words: str, noun: Noun) -> bool:
    """Whether a negation names the noun, in singular or plural, as whole words."""
    return re.search(rf"\b{re.escape(noun.shape or '')}(?:s|es)?\b", words, re.I) is not None
