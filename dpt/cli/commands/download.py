"""`dpt download`: the published checkpoint, from the hub to where it is looked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dpt.errors import fail

HEX = "0123456789abcdef"


@dataclass(frozen=True)
class DownloadOptions:
    """Fetch the published checkpoint. There is one file under its name in the end, whole, or none."""

    repo: Annotated[str, tyro.conf.arg(metavar="HUB_ID")] = "leigangqu/DPT-T2I"
    """Where it is on the hub."""
    file: str = "pytorch_model.bin"
    """Its name there, and here."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Branch, tag or commit; by default the newest."""
    out: Path = Path("ckpt/dpt-v2.1")
    """The folder to put it into."""
    size: Annotated[int | None, tyro.conf.arg(metavar="BYTES")] = None
    """What it must have."""
    sha256: Annotated[str | None, tyro.conf.arg(metavar="HEX")] = None
    """What it must have."""
    endpoint: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Another hub, which is not sent your token. By default what HF_ENDPOINT says, or the public one."""


def download(options: DownloadOptions) -> None:
    from dpt.checkpoints.download import DownloadSpec, fetch

    for name in ("repo", "file"):
        if not getattr(options, name):
            fail(f"--{name} is empty")
    if options.sha256 is not None and not (len(options.sha256) == 64 and set(options.sha256.lower()) <= set(HEX)):
        fail(f"--sha256 takes 64 hexadecimal digits, not {options.sha256!r}")
    wanted = DownloadSpec(options.repo, options.file, options.revision, options.size, (options.sha256 or "").lower())
    print(fetch(wanted, options.out, options.endpoint))
