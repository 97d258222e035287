"""What can be wrong with data files. Every message is a sentence that names the file, and the row if there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpt.errors import UserError


class DataFault(UserError):
    """Something in a data file that cannot be used."""


class BrokenPicture(DataFault):
    """A picture file that is missing, cut, or cannot be decoded."""

    path: str = ""
    reason: str = ""

    @classmethod
    def of(cls, path: Path, reason: str) -> BrokenPicture:
        broken = cls(f"the picture {path} cannot be used: {reason}")
        broken.path, broken.reason = str(path), reason
        return broken


OnFault = Callable[[DataFault], None]
"""What a reader does about a row it cannot use: stop there (training), or take note and read on (a check)."""


def stop(fault: DataFault) -> None:
    raise fault
