"""JSON that anybody may have written: a value, or a ValueError that says what is wrong, whatever the text is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

_MAY_BE_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    text: str | bytes, *, half_characters: bool = False, constant: Callable[[str], Any] | None = None
) -> Any:
    """`half_characters`: whether texts may hold what cannot be written as UTF-8. `constant`: what to make of NaN."""
    try:
        value = json.loads(text, parse_constant=constant)
        written = text if isinstance(text, str) else text.decode("latin-1")
        if not half_characters and _MAY_BE_HALF.search(written):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
    return value
