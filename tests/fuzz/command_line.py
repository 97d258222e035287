"""Command lines: methods, suites, flags. The file holds the words, separated by NUL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from dpt.cli.bench.report import ReportOptions
from dpt.cli.commands.checkpoints import DownloadOptions
from dpt.cli.common.config_file import options_of_file, to_toml
from dpt.cli.common.console import parse_options
from dpt.cli.main import run
from dpt.cli.train.options import PUBLISHED
from dpt.cli.train.stages import Stage2Options
from dpt.errors import UserError, run_command
from dpt.evaluation.suites import registry
from dpt.methods.registry import parse_method
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.parser import Parser, Target

METHODS = (
    b"base",
    b"dpt=ckpt/pocket-dpt",
    b"corrected=ckpt/pocket-dpt,factor=0.1,target=fused,norm=rms,start=0,end=0.6",
    b"best=ckpt/pocket-dpt,lora=off,candidates=4,every=2",
)
SUITES = (b"pocket", b"lmd", b"sr2d", b"geneval=no/such/file", b"coco-nss1k=.", b"prompts=README.md")
COMMANDS = (
    b"bench\0report\0no/folder\0--baseline\0base\0--also\0a\0b\0--budget_mb\08.0\0--reference\0scenes",
    b"info\0no/such/checkpoint",
    b"export\0no/such/checkpoint\0--out\0there",
    b"data\0check\0no/folder\0--decode",
)
FLAGS = (
    b"no/folder\0--baseline\0base\0--also\0a\0b\0--budget_mb\08.0\0--reference\0scenes",
    b"--file\0x.bin\0--size\05",
    b"--endpoint\0x\0--out\0./a b",
    b"--repo\0a/b\0--file\0x.bin\0--size\0123\0--sha256\0" + b"ab" * 32 + b"\0--revision\0main\0--out\0there",
)
WORDS = (
    b"--help",
    b"-h",
    b"--",
    b"-",
    b"",
    b"--size",
    b"--size=-1",
    b"nan",
    b"inf",
    b"1e999",
    b"None",
    b"--no-x",
    b"@file",
    b"--out",
    b"--budget_mb",
    b"--a.b.c",
    b"[]",
    b"{",
    b"*",
    b"%(prog)s",
    b"\xff",
    b"\xf0\x9f\x90\x88",
    b"0x10",
    b"9" * 5000,
)


def mutate_words(content: bytes, rng: Random) -> bytes:
    words = content.split(b"\0")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(words) + 1)
        words[at : at + rng.randrange(2)] = [rng.choice((*WORDS, *words))]
    return b"\0".join(words)


def words_of(file: Path) -> list[str]:
    return [word.decode("utf-8", "surrogateescape") for word in file.read_bytes().split(b"\0")]


def run_parser(command: Callable[[], object]) -> None:
    """A command line that cannot be parsed exits with 2, help with 0."""
    try:
        command()
    except SystemExit as end:
        if end.code != 2 and end.code not in (0, None):
            raise AssertionError(f"it ended with {end.code!r}") from end
        if end.code == 2:
            raise UserError("usage") from None


def words_target(read: Callable[[list[str]], object], samples: tuple[bytes, ...]) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        return Target(folder / "words", samples, lambda: read(words_of(folder / "words")))

    return make


def options(words: list[str]) -> None:
    """DownloadOptions has few flags and so is fast: it takes most of the cases."""
    kind: type[ReportOptions] | type[DownloadOptions] = ReportOptions if "--baseline" in words else DownloadOptions
    run_parser(lambda: parse_options(kind, words, "dpt"))


def harmless_command(words: list[str]) -> None:
    """Only commands that write nothing, on folders that do not exist."""
    if words[:1] not in (["bench"], ["info"], ["export"], ["data"]) or words[1:2] in (["prepare"], ["run"], ["score"]):
        raise UserError("another command")
    run_parser(lambda: check_exit(run_command(lambda: run(words))))


def check_exit(code: int) -> None:
    if code:
        assert code == UserError.exit_code, code
        raise UserError("refused")


def suite(words: list[str]) -> None:
    _, file = registry.parse(words[0])
    registry.layout_of(words[0])
    if file is not None:
        registry.load(words[0])


def config_file(folder: Path) -> Target:
    """`--config run.toml`."""
    file = folder / "run.toml"
    samples = (
        to_toml(Stage2Options()).encode(),
        b'learning-rate = 1e-3\n[samples]\nvalidation_prompts = ["a", "\xc3\xbc"]\nplain_lora = true\n',
    )
    return Target(file, samples, lambda: options_of_file(file, Stage2Options, PUBLISHED))


HOSTILE_TOML = (
    b"a = " + b"[" * 20_000,
    b"a." * 20_000 + b"b = 1",
    b"seed = " + b"9" * 10_000,
    b"seed = 0x" + b"f" * 100_000,
    b"learning_rate = 1e999\nmax_train_steps = nan",
    b"[seed]\nseed = 1979-05-27T07:32:00Z",
)


PARSERS = (
    Parser("config files", config_file, hostile=HOSTILE_TOML),
    Parser("methods", words_target(lambda words: parse_method(words[0]), METHODS)),
    Parser("names of suites", words_target(suite, SUITES)),
    Parser("flags", words_target(options, FLAGS), (mutate_words, mutate_words, mutate_bytes)),
    Parser("commands", words_target(harmless_command, COMMANDS), (mutate_words, mutate_words, mutate_bytes)),
)
