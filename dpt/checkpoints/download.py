"""Fetching a checkpoint from the hub: whole under its name, or not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from dpt.errors import UserError
from dpt.files import atomic_new_file, sha256


@dataclass(frozen=True)
class DownloadSpec:
    repo: str
    file: str
    revision: str | None = None
    size: int | None = None
    sha256: str = ""


def fetch(wanted: DownloadSpec, folder: Path, endpoint: str | None = None) -> str:
    """What has been done, in a sentence. A file that is there already is left alone."""
    final = folder / PurePosixPath(wanted.file).name
    if final.exists():
        _check(final, wanted, f"{final} is there already, but it")
        return f"{final} is there already ({_stored_sha256(final)})"
    with atomic_new_file(final) as work, TemporaryDirectory(prefix=f".{final.name}.", dir=work.parent) as scratch:
        found = _fetch(wanted, final, Path(scratch), endpoint)
        _check(found, wanted, f"what the hub has as {wanted.file} of {wanted.repo} was not kept: it")
        found.replace(work)
    return f"{final} was fetched from {wanted.repo} ({_stored_sha256(final)})"


def _check(file: Path, wanted: DownloadSpec, subject: str) -> None:
    size = file.stat().st_size
    if wanted.size not in (None, size):
        raise UserError(f"{subject} has {size} bytes instead of {wanted.size}")
    if wanted.sha256 and (digest := sha256(file)) != wanted.sha256:
        raise UserError(f"{subject} has the SHA-256 {digest} instead of {wanted.sha256}")


def _stored_sha256(file: Path) -> str:
    return f"{file.stat().st_size:,} bytes, SHA-256 {sha256(file)}"


def _fetch(wanted: DownloadSpec, final: Path, scratch: Path, endpoint: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named = f"{wanted.file} of {wanted.repo}"
    try:
        return Path(
            hf_hub_download(
                wanted.repo,
                wanted.file,
                revision=wanted.revision,
                local_dir=scratch,
                endpoint=endpoint,
                token=False if endpoint else None,
            )
        )
    except HFValidationError:
        raise UserError(f"{wanted.repo!r} is not the name of a repository on a hub") from None
    except GatedRepoError:
        raise UserError(f"the hub asks for a login and consent before it hands out {named}") from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no repository {wanted.repo!r}, or does not show it without a login") from None
    except RevisionNotFoundError:
        raise UserError(f"the hub has {wanted.repo!r} but not its revision {wanted.revision!r}") from None
    except LocalEntryNotFoundError as error:
        raise UserError(_by_hand(named, final, error)) from None
    except EntryNotFoundError:
        raise UserError(f"the hub has {wanted.repo!r} but no file {wanted.file!r} in it") from None
    # What a missing network raises depends on where it is noticed and on the HTTP client of the day.
    except Exception as error:
        raise UserError(_by_hand(named, final, error)) from None


def _by_hand(named: str, final: Path, error: Exception) -> str:
    return (
        f"{named} cannot be fetched from the hub ({type(error).__name__}): run this where there is a network, or fetch "
        f"the file with a browser there, and put it at {final}"
    )
