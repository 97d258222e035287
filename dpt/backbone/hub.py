"""From what the user typed to a folder on disk: a folder as it is, a hub id from the cache or the hub."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from dpt.backbone.folder import COMPONENTS
from dpt.errors import UserError

_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?", re.ASCII)
_UNUSED_WEIGHTS = ["*.fp16.*", "*.bf16.*", "*.non_ema.*", "*non_ema*"]


def find_model(
    path_or_hub_id: str | Path, revision: str | None = None, wanted: Sequence[str] | None = None
) -> Path:
    """The folder that holds the model. A folder never touches the network. OWNER/NAME@REVISION is that revision of it.

    `wanted`: which files of it to fetch, where it is not in the diffusers layout.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        if revision is not None:
            warnings.warn(f"revision {revision!r} is ignored: {path} is a folder", stacklevel=2)
        return path
    if path.exists():
        raise UserError(f"{path} is a file, not a model folder")
    named = None if isinstance(path_or_hub_id, Path) else _HUB_ID.fullmatch(path_or_hub_id)
    if named is None:
        raise UserError(f"there is no model folder {str(path_or_hub_id)!r}")
    hub_id, pinned = named.groups()
    if pinned and revision not in (None, pinned):
        raise UserError(f"{path_or_hub_id} names one revision, and --revision {revision} another")
    return _fetch(hub_id, pinned or revision, _diffusers_files() if wanted is None else list(wanted))


def _diffusers_files() -> list[str]:
    endings = ("json", "txt", "safetensors")
    return ["model_index.json", *(f"{part.name}/*.{ending}" for part in COMPONENTS for ending in endings)]


def _fetch(hub_id: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=wanted, ignore_patterns=_UNUSED_WEIGHTS
            )
        )
    except GatedRepoError:
        raise UserError(f"the hub asks for a login and consent before it hands out {hub_id!r}") from None
    except RevisionNotFoundError:
        raise UserError(f"the hub has {hub_id!r} but not its revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{hub_id!r} is neither a folder here nor a model on the hub") from None
    # What a missing network raises depends on where it is noticed and on the HTTP client of the day.
    except Exception as error:
        raise UserError(
            f"{hub_id!r} is not a folder here, not in the local cache, "
            f"and cannot be fetched from the hub ({type(error).__name__})"
        ) from None
