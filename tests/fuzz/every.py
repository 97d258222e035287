"""All parsers, by name."""

from __future__ import annotations

from tests.fuzz import of_benches, of_data, of_pictures, of_results, of_words
from tests.fuzz.parser import Parser

PARSERS: dict[str, Parser] = {
    parser.name: parser
    for parser in (
        *of_data.PARSERS, *of_results.PARSERS, *of_benches.PARSERS, *of_pictures.PARSERS, *of_words.PARSERS
    )
}  # fmt: skip
