"""`dpt download`: fetch the published checkpoint from a hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dpt.errors import fail

HEX = "0123456789abcdef"


@dataclass(frozen=True)
class DownloadOptions:
    """Fetch the published checkpoint. Afterwards the file is there, complete, or not at all."""

    repo: Annotated[str, tyro.conf.arg(metavar="HUB_ID")] = "leigangqu/DPT-T2I"
    """Repository on the hub."""
    file: str = "pytorch_model.bin"
    """Name of the file there, and here."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Branch, tag or commit; by default the newest."""
    out: Path = Path("ckpt/dpt-v2.1")
    """Folder to put it into."""
    size: Annotated[int | None, tyro.conf.arg(metavar="BYTES")] = None
    """Refuse a file of another size."""
    sha256: Annotated[str | None, tyro.conf.arg(metavar="HEX")] = None
    """Refuse a file with another SHA-256."""
    endpoint: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Another hub, which is not sent your token. By default HF_ENDPOINT, or the public one."""
    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 300.0
    """Give up after so long without progress."""


def download(options: DownloadOptions) -> None:
    from dpt.checkpoints.download import DownloadSpec, download_checkpoint

    for name in ("repo", "file"):
        if not getattr(options, name):
            fail(f"--{name} is empty")
    if options.sha256 is not None and not (len(options.sha256) == 64 and set(options.sha256.lower()) <= set(HEX)):
        fail(f"--sha256 takes 64 hexadecimal digits, not {options.sha256!r}")
    if not options.timeout > 0:
        fail(f"--timeout must be positive, not {options.timeout:g}")
    spec = DownloadSpec(options.repo, options.file, options.revision, options.size, (options.sha256 or "").lower())
    print(download_checkpoint(spec, options.out, options.endpoint, options.timeout))
