"""A hub id may pin a revision; that revision is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from dpt.backbone.loading import locate_model
from dpt.errors import UserError

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """(id, revision) of each download from the hub."""
    actual: list[tuple[str, str | None]] = []

    def fetch(name: str, *, revision: str | None, **others: Any) -> str:
        actual.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return actual


@pytest.mark.parametrize(
    ("name", "revision", "fetched"),
    [
        ("owner/name", None, ("owner/name", None)),
        ("owner/name", "v1.0", ("owner/name", "v1.0")),
        (f"owner/name@{COMMIT}", None, ("owner/name", COMMIT)),
        (f"owner/name@{COMMIT}", COMMIT, ("owner/name", COMMIT)),
    ],
)
def test_requested_revision_is_downloaded(
    requests: list[tuple[str, str | None]], name: str, revision: str | None, fetched: tuple[str, str | None]
) -> None:
    locate_model(name, revision)
    assert requests == [fetched]


def test_two_different_revisions_are_refused(requests: list[tuple[str, str | None]]) -> None:
    with pytest.raises(UserError, match="owner/name@v1 names one revision, and --revision v2 another"):
        locate_model("owner/name@v1", "v2")
    assert not requests


@pytest.mark.parametrize(
    "name", ["../name", "owner/../..", "owner/name@", "owner/name@../x", "owner/name@a b", "a/b/c", "é/b"]
)
def test_invalid_hub_id_is_not_requested(requests: list[tuple[str, str | None]], name: str) -> None:
    with pytest.raises(UserError, match="there is no model folder"):
        locate_model(name)
    assert not requests
