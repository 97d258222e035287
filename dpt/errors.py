"""What went wrong because of what the user gave us: one clear sentence, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake in what was asked for. The message is one sentence that names the thing at fault."""

    exit_code = 2


def fail(message: str) -> NoReturn:
    raise UserError(message)


def run_command(command: Callable[[], object]) -> int:
    """Run a command-line entry point; user errors become one line on stderr and their exit code, 2."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
