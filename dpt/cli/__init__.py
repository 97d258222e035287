"""Options and entry points: nothing else parses arguments."""

import sys
from importlib.util import find_spec

from dpt.errors import UserError, not_installed

if find_spec("tyro") is None:  # every command needs it, and none could report that it is missing
    print(f"error: {not_installed('tyro')}", file=sys.stderr)
    sys.exit(UserError.exit_code)
