"""Downloads from a model hub: an overall time limit, and for each failure what is wrong and what to do next."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from dpt.errors import UserError

STALLED_AFTER_SECONDS = 300.0
"""Without a byte of progress on the disk. The hub's own client only limits the time between two bytes of a header."""


@dataclass(frozen=True)
class HubSource:
    repo: str
    revision: str | None = None
    file: str = ""
    """Empty for a whole model."""

    def __str__(self) -> str:
        return f"{self.file} of {self.repo}" if self.file else self.repo


def fetch_from_hub(
    download: Callable[[], str], source: HubSource, watch: Path, stalled_after: float = STALLED_AFTER_SECONDS,
    otherwise: str = ""
) -> Path:  # fmt: skip
    """The path that `download` returns; its failures become UserErrors.

    `watch` is the folder that grows while it makes progress; `otherwise` is a way to do without the network.
    """
    outcome: list[str | BaseException] = []

    def work() -> None:
        try:
            outcome.append(download())
        except BaseException as error:
            outcome.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    size, since = -1, time.monotonic()
    while thread.is_alive():
        thread.join(0.2)
        if (now := _size(watch)) != size:
            size, since = now, time.monotonic()
        if thread.is_alive() and time.monotonic() - since > stalled_after:
            _hang_up()
            silence = f"the hub sent nothing for {stalled_after:g} seconds"
            raise UserError(f"{source} cannot be fetched: {silence}; try again later{otherwise}")
    result = outcome[0]
    if isinstance(result, BaseException):
        raise explain(result, source, otherwise) from None
    return Path(result)


def explain(error: BaseException, source: HubSource, otherwise: str = "") -> BaseException:
    """The UserError for a failed call of huggingface_hub; errors that are not the hub's come back as they are."""
    from huggingface_hub import errors

    chain = list(_chain(error))
    if not isinstance(error, Exception) or any(isinstance(e, OSError) and e.errno == errno.ENOSPC for e in chain):
        return error
    kinds = (
        (errors.HFValidationError, f"{source.repo!r} is not the name of a repository on a hub: it is OWNER/NAME"),
        (
            errors.GatedRepoError,
            f"{source.repo} is gated: accept its conditions on its page, then log in with `hf auth login`",
        ),
        (
            errors.RepositoryNotFoundError,
            f"the hub has no repository {source.repo!r}, or it is private: check the name, or log in with "
            "`hf auth login`",
        ),
        (
            errors.RevisionNotFoundError,
            f"the hub has {source.repo!r} but not its revision {source.revision!r}: check the branch, tag or commit",
        ),
        (
            errors.RemoteEntryNotFoundError,
            f"the hub has {source.repo!r} but no file {source.file!r} in it: check the name of the file",
        ),
        (
            errors.OfflineModeIsEnabled,
            f"{source} is not on this machine, and HF_HUB_OFFLINE forbids fetching it: unset it{otherwise}",
        ),
    )
    for kind, message in kinds:
        if any(isinstance(e, kind) for e in chain):
            return UserError(message)
    status = next((s for e in chain if (s := getattr(getattr(e, "response", None), "status_code", None))), None)
    if status in (401, 403):
        return UserError(
            f"the hub refuses access to {source} ({status}): log in with `hf auth login` to an account with access"
        )
    if status is not None:
        return UserError(f"{source} cannot be fetched: the hub answered {status}; try again later{otherwise}")
    names = {kind.__name__ for e in chain for kind in type(e).__mro__}
    if names & {"TimeoutException", "TimeoutError"}:
        return UserError(f"{source} cannot be fetched: the hub did not answer in time; try again later{otherwise}")
    if names & {"ConnectError", "ProxyError", "ConnectionRefusedError", "gaierror"}:
        return UserError(
            f"{source} is not a folder here, and no hub can be reached to fetch it: check the path, or the network and "
            f"the proxy{otherwise}"
        )
    return UserError(
        f"{source} cannot be fetched: the download broke off ({type(chain[-1]).__name__}); try again{otherwise}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # moved meanwhile
            continue
    return total


def _hang_up() -> None:
    """Close the client's connections, so that threads that still read from them end and the process can."""
    from huggingface_hub import close_session

    close_session()
