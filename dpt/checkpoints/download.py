"""Download a checkpoint from a hub: complete under its name, or not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dpt.errors import UserError
from dpt.files import atomic_new_file, scratch_folder, sha256
from dpt.hub import STALLED_AFTER_SECONDS, HubSource, fetch_from_hub


@dataclass(frozen=True)
class DownloadSpec:
    """Which file of which repository, and what it must be; an empty or missing check is not made."""

    repo: str
    file: str
    revision: str | None = None
    size: int | None = None
    sha256: str = ""


def download_checkpoint(
    spec: DownloadSpec, folder: Path, endpoint: str | None = None, stalled_after: float = STALLED_AFTER_SECONDS
) -> str:
    """Put the file into `folder`, unless it already exists; return a sentence that says what was done."""
    from huggingface_hub import hf_hub_download

    final = folder / PurePosixPath(spec.file).name
    if final.exists():
        _check(final, spec, f"{final} already exists, but it")
        return f"{final} already exists ({_facts(final)})"
    source = HubSource(spec.repo, spec.revision, spec.file)
    by_hand = f", or fetch the file with a browser elsewhere and put it at {final}"
    with atomic_new_file(final) as work, scratch_folder(work.parent, f"{final.name}.parts") as scratch:

        def download() -> str:
            return hf_hub_download(
                spec.repo,
                spec.file,
                revision=spec.revision,
                local_dir=scratch,
                endpoint=endpoint,
                token=False if endpoint else None,
            )

        fetched = fetch_from_hub(download, source, scratch, stalled_after, by_hand)
        _check(fetched, spec, f"{source} was not kept: it")
        fetched.replace(work)
    return f"{final} was fetched from {spec.repo} ({_facts(final)})"


def _check(file: Path, spec: DownloadSpec, subject: str) -> None:
    size = file.stat().st_size
    if spec.size not in (None, size):
        raise UserError(f"{subject} has {size} bytes instead of {spec.size}")
    if spec.sha256 and (digest := sha256(file)) != spec.sha256:
        raise UserError(f"{subject} has the SHA-256 {digest} instead of {spec.sha256}")


def _facts(file: Path) -> str:
    return f"{file.stat().st_size:,} bytes, SHA-256 {sha256(file)}"
