"""`--push_to_hub`: the hub is asked before training whether it would take the adapter, and is sent it afterwards."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpt.cli.model_card import CARD, model_card
from dpt.cli.train_options import HubOptions
from dpt.errors import UserError, fail

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HIDDEN = "***"


class NotUploadedError(UserError):
    """The run is done and on the disk; only the upload is not. 69 is what Unix has for a service that is not there."""

    exit_code = 69


class Hub:
    """A repository that exists and may be written to."""

    def __init__(self, api: HfApi, repository: str, token: str) -> None:
        self._api, self.repository, self._token = api, repository, token

    def push(self, root: Path, folders: Sequence[Path], curve: Path) -> str:
        """What the run trained, with a card and the curve; the address of what was uploaded."""
        folder = folders[0] if len(folders) == 1 else root
        try:
            if folder != root:
                shutil.copy(curve, folder / curve.name)
            (folder / CARD).write_text(model_card(self.repository, root, folders))
            parts = [CARD, curve.name, *(f"{one.name}/*" for one in folders)] if folder == root else None
            message = "Upload what a finished run has trained"
            self._api.upload_folder(
                repo_id=self.repository, folder_path=folder, commit_message=message, allow_patterns=parts
            )
        except Exception as error:  # whatever it was, the run is not lost by it
            raise NotUploadedError(
                f"the run is finished and saved, but {folder} was not uploaded to {self.repository} "
                f"({reason(error, self._token)}): repeat the command, or run `hf upload {self.repository} {folder}`"
            ) from None
        return f"{self._api.endpoint}/{self.repository}"


def open_hub(options: HubOptions, root: Path) -> Hub | None:
    if not options.push_to_hub:
        return None
    from huggingface_hub import HfApi, get_token

    if options.hub_token:  # trackers note the command line
        sys.argv[:] = [word.replace(options.hub_token, HIDDEN) for word in sys.argv]
    token = (options.hub_token or get_token() or "").strip()
    if not token:
        fail("--push_to_hub needs a token: log in with `hf auth login`, set HF_TOKEN, or give --hub_token")
    if not (token.isascii() and token.isprintable()):  # libraries would quote it in what they complain of
        fail("the token for --push_to_hub has characters that no token has")
    name = options.hub_model_id or root.resolve().name
    api = HfApi(token=token)
    try:
        role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise PermissionError("this token may only read")
        repository = api.create_repo(name, exist_ok=True).repo_id
    except Exception as error:  # whatever it was, it would be in the way later too
        fail(f"--push_to_hub cannot upload {name} to {api.endpoint} ({reason(error, token)}); nothing was trained")
    return Hub(api, repository, token)


def reason(error: Exception, token: str) -> str:
    """The first line of what it says, without the token."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip() if lines else type(error).__name__).replace(token, HIDDEN)
