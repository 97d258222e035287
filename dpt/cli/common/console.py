"""Flags from dataclasses, warnings on the terminal, library versions, new run folders, and files of prompts."""

from __future__ import annotations

import io
import os
import platform
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

import dpt
from dpt.claims.words import unknown_words
from dpt.data.scenes.world import POCKET_WORLD, words_of
from dpt.embedded import EMBEDDED_CLIP, EMBEDDED_MODELS, FOLDER, embedded_path
from dpt.errors import UserError, fail
from dpt.files import NumberedFolder, numbered_folder
from dpt.untrusted import parse_json, read_text


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def warn_of_unknown_words(model: str, prompts: Iterable[str]) -> None:
    """For an embedded model: which words it knows, and how to use another model."""
    unknown = unknown_words(" ".join(prompts), words_of(POCKET_WORLD)) if model in EMBEDDED_MODELS else []
    if unknown:
        known = words_of(POCKET_WORLD)
        warn(
            f"{model} is a miniature that does not know {', '.join(map(repr, unknown))}; its {len(known)} words are "
            f"{', '.join(known)}. For other prompts give a real model: --pretrained_model_name_or_path FOLDER"
        )


CAPTIONS_READ, WORDS_NAMED = 2000, 8


def warn_of_unknown_captions(model: str, captions: Iterable[str]) -> None:
    """The same for the captions to train on: in how many of them it knows not every word, and which words."""
    read = list(islice(captions, CAPTIONS_READ)) if model in EMBEDDED_MODELS else []
    known = words_of(POCKET_WORLD)
    unknown = [{word.lower() for word in unknown_words(caption, known)} for caption in read]
    counts = Counter(word for words in unknown for word in sorted(words))
    if not counts:
        return
    named = ", ".join(f"{word!r} in {count}" for word, count in counts.most_common(WORDS_NAMED))
    more = f" and {len(counts) - WORDS_NAMED} other words" if len(counts) > WORDS_NAMED else ""
    among = f"the first {len(read):,} captions" if len(read) == CAPTIONS_READ else f"{len(read):,} captions"
    affected = sum(map(bool, unknown))
    some = f"{affected:,} of {among} {'has' if affected == 1 else 'have'}"
    warn(
        f"{some} words that {model}, a miniature, does not know: {named}{more}. "
        "For such images give a real model: --pretrained_model_name_or_path FOLDER"
    )


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print user warnings as one line each, without a file name or a line of code."""
    with warnings.catch_warnings():
        ordinary = warnings.showwarning

        def show(message, category, *rest, **more):  # type: ignore[no-untyped-def]
            if issubclass(category, UserWarning):
                warn(str(message))
            else:
                ordinary(message, category, *rest, **more)

        warnings.showwarning = show
        yield


T = TypeVar("T")

DIFFUSERS_NAMES = {
    "model": "pretrained_model_name_or_path",
    "pretrained_model": "pretrained_model_name_or_path",
    "num_inference_steps": "num_timesteps",
    "num_images_per_prompt": "n_samples",
    "output_dir": "outdir",
    "outdir": "output_dir",
    "batch_size": "train_batch_size",
    "max_steps": "max_train_steps",
    "rank": "lora_rank",
    "lr": "learning_rate",
    "train_data_dir": "data_root",
    "checkpoint": "ckpt",
    "torch_dtype": "dtype",
    "device": "gpu",
}
"""Flag names of diffusers' scripts and pipelines, accepted where a command has the flag on the right but not the one
on the left."""


@dataclass(frozen=True)
class PublishedFlags:
    """Flags of the published scripts that a command no longer has, each with the reason."""

    refused: Mapping[str, str] = field(default_factory=dict)
    """These end the command."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """These are dropped with a warning."""


NO_PUBLISHED_FLAGS = PublishedFlags()


def parse(entry: Callable[[T], object], words: Sequence[str], prog: str) -> T:
    """Parse the command line into the options that `entry` takes as its only argument.

    A class of options with presets chooses them by its method `preset(words)`.
    """
    (name,) = [name for name in get_type_hints(entry) if name != "return"]
    kind = get_type_hints(entry)[name]
    preset = getattr(kind, "preset", None)
    return parse_options(kind, words, prog, default=None if preset is None else preset(words))


def parse_options(
    options: type[T],
    words: Sequence[str],
    prog: str,
    published: PublishedFlags = NO_PUBLISHED_FLAGS,
    default: T | None = None,
) -> T:
    """Parse words into a dataclass of options; unknown and dead flags end in one sentence.

    `default` has the values of the flags that are not given, instead of the class's own.
    """
    known = flag_names(options)
    checked = [_embedded(word) for word in _check_flags(words, known, prog, published)]
    preset: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    if {"--help", "-h"} & set(checked):
        _join_lines_of_help(options)
    try:
        with redirect_stderr(complaint):
            parsed: Any = tyro.cli(options, prog=prog, args=checked, use_underscores=True, **preset)
    except SystemExit as end:
        if end.code:
            raise UserError(one_sentence(complaint.getvalue(), checked, prog)) from None
        raise
    return parsed


def _join_lines_of_help(options: Any) -> None:
    """Remove the line breaks that tyro keeps in docstrings of several lines, so that help fits any terminal."""
    from tyro._docstrings import parse_docstring_from_object  # its cache, which the help is made from

    kind = get_args(options)[0] if get_origin(options) is Annotated else options
    for part in (kind, *kind.__mro__[1:-1]):
        texts = parse_docstring_from_object(part)
        texts.update({name: re.sub(r"(?<!\n)\n[ ]*(?!\s)", " ", text) for name, text in texts.items()})
    for hint in get_type_hints(kind).values():
        if is_dataclass(hint):
            _join_lines_of_help(hint)


def one_sentence(box: str, words: Sequence[str], prog: str) -> str:
    """What is wrong with a command line, from the lines that tyro prints about it."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()]
    lines = [line for line in lines if line and not re.match(r"[╭╰─]|-{4}", line)]
    text, help_hint = " ".join(lines), f"{prog} --help explains the flags"
    if "Missing from" in text:
        entries: list[str] = []
        for line in lines[[line.startswith("Missing from") for line in lines].index(True) + 1 :]:
            if line.startswith("For full"):
                break
            if entries and re.search(r"--\w+$", entries[-1]):  # its metavar is on the next line
                entries[-1] += f" {line}"
            elif line.startswith("--") or line == line.upper():
                entries.append(line)
            elif entries and (meaning := line.removesuffix("(required)").strip(" .")):
                entries[-1] += f" {meaning}" if "(" in entries[-1] else f" ({meaning}"
        names = [re.sub(r"^(--[^()]*, )+--", "--", entry) for entry in entries]  # the last of its names
        missing = [f"{name})" if "(" in name else name for name in names]
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; {help_hint}"
    if found := re.search(r"Missing value for argument '(\S+)'", text):
        return f"{found[1]} needs a value; {help_hint}"
    if found := re.search(r"Unrecognized options: (.*?) For full", text):
        left = found[1].replace(", ", " ")
        return f"{left!r} belongs to no flag of {prog}: a text of several words needs quotes; {help_hint}"
    if found := re.search(r"invalid choice '(.*?)' for argument '(\S+)'\. Expected one of \((.*?)\)", text):
        choices = sorted(set(re.findall(r"'([^']*)'", found[3])) - {"None", ""})
        close = get_close_matches(found[1], choices, n=1)
        return f"{found[2]} is one of {', '.join(choices)}, not {found[1]!r}" + "".join(
            f", did you mean {name}?" for name in close
        )
    if found := re.search(r"Error parsing (\S+): ", text):
        flag = found[1]
        metavar = next((line.partition(" ")[2] for line in lines if line.startswith(f"{flag} ")), "another value")
        after = " ".join(words).partition(f"{flag}")[2].partition(" --")[0].strip("= ")
        kind = metavar.replace("{None}|", "").strip("{}")
        return f"{flag} takes {kind}, not {after!r}; {help_hint}"
    return text or f"{prog} does not understand this command line; {help_hint}"


def flag_names(options: Any) -> set[str]:
    """The flags of a dataclass and its nested groups, without dashes; aliases included."""
    kind = get_args(options)[0] if get_origin(options) is Annotated else options
    names: set[str] = set()
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if name not in {field.name for field in fields(kind)}:
            continue
        bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if is_dataclass(bare):
            names |= flag_names(bare)
            continue
        names.add(name)
        if bare is bool:
            names.add(f"no_{name}")
        for extra in hint.__metadata__ if get_origin(hint) is Annotated else ():
            names |= {alias.lstrip("-") for alias in getattr(extra, "aliases", None) or ()}
            names |= {extra.name} if isinstance(getattr(extra, "name", None), str) else set()
    return names


def flag_value(words: Sequence[str], flag: str) -> str | None:
    """The value of a flag that decides the defaults of others, given as `--flag value` or `--flag=value`."""
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == f"--{flag}":
            return value if equals else "".join(words[position + 1 : position + 2])
    return None


def _check_flags(words: Sequence[str], known: set[str], prog: str, published: PublishedFlags) -> list[str]:
    """The words with aliases replaced and ignored flags left out; fails at the first flag that cannot be used."""
    kept: list[str] = []
    dropping = False
    for word in words:
        if not word.isprintable() and any("\ud800" <= c <= "\udfff" for c in word):
            fail(f"the argument {word!r} holds bytes that are not UTF-8")
        if not _is_flag(word):
            if not dropping:
                kept.append(word)
            continue
        given, equals, value = word[2:].partition("=")
        name = given.replace("-", "_")
        dropping = False
        if name in known or name == "help":
            kept.append(f"--{name}{equals}{value}")
        elif name in published.refused:
            fail(f"--{name} {published.refused[name]}")
        elif name in published.ignored:
            dropping = not equals
            if os.environ.get("RANK", "0") == "0":
                warn(f"--{name} {published.ignored[name]}")
        elif DIFFUSERS_NAMES.get(name) in known:
            kept.append(f"--{DIFFUSERS_NAMES[name]}{equals}{value}")
        else:
            fail(f"{prog} has no flag --{given}{suggestion(name, known)}; {prog} --help lists them")
    return kept


def _embedded(word: str) -> str:
    """Embedded checkpoints are found from any working directory; embedded models are found by their names later."""
    flag, equals, value = word.partition("=") if _is_flag(word) else ("", "", word)
    if value in EMBEDDED_MODELS or value == EMBEDDED_CLIP or not value.startswith(f"{FOLDER}/"):
        return word
    return f"{flag}{equals}{embedded_path(value)}"


def _is_flag(word: str) -> bool:
    return word.startswith("--") and word[2:3].isalpha()


def suggestion(name: str, known: set[str] | Sequence[str]) -> str:
    """', did you mean X?' as the end of a sentence, or nothing where no name is close."""
    named = dict.fromkeys((name, DIFFUSERS_NAMES.get(name, name)))
    close = [match for candidate in named for match in get_close_matches(candidate, sorted(known), n=1, cutoff=0.6)]
    return f", did you mean --{close[0]}?" if close else ""


LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "pillow")


def versions() -> dict[str, str]:
    installed = {"dpt": dpt.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            installed[library] = version(library)
        except PackageNotFoundError:
            continue
    return installed


def new_run_folder(parent: Path, text: str) -> AbstractContextManager[NumberedFolder]:
    """A folder under `parent` named after `text` and the first free number, safe against other runs."""
    return numbered_folder(parent, slug(text))


def slug(text: str, length: int = 48) -> str:
    """The words of a text as a readable file name."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:length].strip("-") or "run"


def read_prompts(file: Path) -> list[str]:
    """One prompt per line, or per line of a .jsonl file the text under "prompt". Blank lines are skipped."""
    try:
        lines = read_text(file).split("\n")  # not splitlines: a prompt may hold U+2028, a form feed and the like
    except OSError as error:
        fail(f"cannot read the prompts {file}: {error.strerror}")
    prompts = [
        _jsonl_prompt(line, f"{file}, line {number}") if file.suffix == ".jsonl" else line.strip()
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return prompts or fail(f"{file} holds no prompt")


def _jsonl_prompt(line: str, where: str) -> str:
    try:
        row = parse_json(line)
    except ValueError as error:
        fail(f"{where}, is not valid JSON: {error}")
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not (isinstance(prompt, str) and prompt.strip()):
        fail(f'{where}, has no text under "prompt"')
    return prompt.strip()
