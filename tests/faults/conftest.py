"""A task that mostly saves, and an uninterrupted run of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.subjects import WHOLE, Subject, line


@pytest.fixture(scope="module")
def subject() -> Subject:
    return line()


@pytest.fixture(scope="module")
def reference(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reference") / "run"
    subject.start(root, **WHOLE).run()
    return root
