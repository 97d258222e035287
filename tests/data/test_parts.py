"""A task gets the parts of an example that it reads, and no other image is decoded or rendered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dpt.data.example import ALL_PARTS, CAPTION_ONLY, Example, ExampleParts, Source
from dpt.data.files.reading import DataRoot
from dpt.data.files.source import training_files
from dpt.data.images import Framing
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.data.stream import Stream
from dpt.training.tasks.denoising import PlainLora
from tests.data.files.conftest import SAMPLE

FLIPPING = Framing(32, random_flip=True)

PARTS = [
    ALL_PARTS,
    ExampleParts(random_negatives=False),
    ExampleParts(hard_negatives=False),
    ExampleParts(expression=False),
    CAPTION_ONLY,
]


def sources() -> list[Source]:
    return [
        SceneSource(POCKET_WORLD, 0, "train", FLIPPING, size=30),
        training_files(DataRoot(SAMPLE), "refall", FLIPPING, 0),
    ]


def expected_values(whole: Example, parts: ExampleParts) -> tuple[object, ...]:
    """The values that an example with these parts should have."""
    expression = whole.expression if parts.expression else None
    images = whole.pictures[: 1 + parts.hard_negatives + (parts.hard_negatives and parts.random_negatives)]
    texts = whole.texts[1 if whole.expression and not parts.expression else 0 :]
    texts = texts[: (expression is not None) + len(images)]
    return whole.id, whole.caption, expression, texts, [image.values.sum().item() for image in images]


@pytest.mark.parametrize("parts", PARTS[1:])
def test_omitted_parts_do_not_change_the_others(parts: ExampleParts) -> None:
    for source in sources():
        for index in range(min(len(source), 12)):
            for epoch in range(3):
                whole, part = source.example(index, epoch), source.example(index, epoch, parts)
                assert expected_values(part, ALL_PARTS) == expected_values(whole, parts)
                assert torch.equal(part.image.values, whole.image.values)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Records every image that is decoded or rendered."""
    from dpt.data.files import source as files
    from dpt.data.scenes import source as scenes

    opened: list[str] = []
    read, render = files.read_image, scenes.render
    monkeypatch.setattr(files, "read_image", lambda *a: (opened.append("decoded"), read(*a))[1])
    monkeypatch.setattr(scenes, "render", lambda *a: (opened.append("rendered"), render(*a))[1])
    yield opened


@pytest.mark.parametrize(("parts", "num_images"), [*zip(PARTS, (3, 2, 1, 3, 1), strict=True)])
def test_only_images_that_a_task_reads_are_opened(parts: ExampleParts, num_images: int, opened: list[str]) -> None:
    for source in sources():
        opened.clear()
        stream = Stream(source, seed=0).only(parts)
        for position in range(6):
            stream[position]
        assert len(opened) == 6 * num_images


def test_plain_lora_reads_only_images_and_captions() -> None:
    assert PlainLora.parts.fget(None) == CAPTION_ONLY  # type: ignore[attr-defined]
