"""All parsers, by name."""

from __future__ import annotations

from tests.fuzz import benchmarks, checkpoints, command_line, data_files, images, ipr, plans
from tests.fuzz.parser import Parser

PARSERS: dict[str, Parser] = {
    parser.name: parser
    for module in (data_files, checkpoints, benchmarks, images, ipr, plans, command_line)
    for parser in module.PARSERS
}
