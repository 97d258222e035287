from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt.backbone import Backbone, Condition, open_backbone
from dpt.data.cache.contents import cache_contents
from dpt.data.example import CAPTION_ONLY, Example, ExampleImage, collate
from dpt.data.files.reading import DataRoot
from dpt.data.files.source import matching_files, training_files
from dpt.data.images import Framing
from dpt.data.stream import CAPTION, Stream, encode_texts, load, texts_of
from dpt.errors import DataError
from tests.data.cache.conftest import FRAMING, make_texts
from tests.training.tiny_stage1 import stream


class CountingEncoder:
    """A text encoder that counts the prompts it encodes."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.prompts = encoder, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def __call__(self, ids: torch.Tensor, **options: Any) -> Any:
        self.prompts += len(ids)
        return self.encoder(ids, **options)


@pytest.fixture
def fresh_backbone(model: Path) -> Backbone:
    """A backbone that the test may change."""
    return open_backbone(model, device="cpu")


def assert_close(actual: Condition, expected: Condition) -> None:
    torch.testing.assert_close(actual.states, expected.states, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.match, expected.match, rtol=0, atol=1e-6)


def test_only_texts_missing_from_the_cache_are_encoded(fresh_backbone: Backbone, root: DataRoot) -> None:
    cached = make_texts(fresh_backbone, root)
    texts = [*cache_contents(root, texts=True, random_flip=False).texts[:3], "never said", "nor this"]
    mixed = [texts[3], texts[0], texts[4], texts[1], texts[0], texts[3], texts[2]]
    expected = (
        fresh_backbone.encode_text(mixed),
        fresh_backbone.encode_text(texts[:3]),
        fresh_backbone.encode_text(texts[3:]),
    )
    fresh_backbone.text_encoder = CountingEncoder(fresh_backbone.text_encoder)
    for prompts, encoded, condition in zip((mixed, texts[:3], texts[3:]), (2, 0, 2), expected, strict=True):
        fresh_backbone.text_encoder.prompts = 0
        images = [Example(prompt, ExampleImage(prompt, torch.zeros(3, 8, 8)), prompt) for prompt in prompts]
        batch = replace(collate(images), encoded=cached.read(prompts))
        assert_close(encode_texts(fresh_backbone, batch, {CAPTION})[CAPTION], condition)
        assert fresh_backbone.text_encoder.prompts == encoded
    assert cached.read(["never said"]) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_reads_cached_texts_with_the_batch(fresh_backbone: Backbone, root: DataRoot, workers: int) -> None:
    source = training_files(root, "refall", FRAMING, 1)
    stream = Stream(source, 0, text_cache=make_texts(fresh_backbone, root)).only(CAPTION_ONLY)
    (batch,) = load(stream, [[0, 1, 2]], workers)
    assert batch.captions is not None and batch.encoded is not None
    assert set(batch.encoded.rows) == set(batch.captions)
    expected = fresh_backbone.encode_text(batch.captions)
    shutil.rmtree(root.path / "cache")
    fresh_backbone.text_encoder = CountingEncoder(fresh_backbone.text_encoder)
    assert_close(encode_texts(fresh_backbone, batch.to("cpu"), {CAPTION})[CAPTION], expected)
    assert fresh_backbone.text_encoder.prompts == 0


def texts_of_source(source: Any) -> set[str]:
    return {text for epoch in range(30) for i in range(len(source)) for text in source.example(i, epoch).texts}


@pytest.mark.parametrize("random_flip", [False, True])
def test_cache_has_every_text_of_the_sources(root: DataRoot, random_flip: bool) -> None:
    framing = Framing(64, random_flip=random_flip)
    texts = set(cache_contents(root, texts=True, random_flip=random_flip).texts)
    for source in (training_files(root, "refall", framing, 1), matching_files(root, "val", FRAMING, 0)):
        assert texts_of_source(source) <= texts


def test_task_uses_cached_texts(fresh_backbone: Backbone, root: DataRoot) -> None:
    from dpt.backbone.rng import SampleRNG
    from tests.training.tiny_stage1 import task

    source = training_files(root, "refall", FRAMING, 1)
    batch = collate([source[index] for index in range(4)])
    stage1 = task(fresh_backbone, adapter={"dropout": 0.0})

    def losses() -> list[float]:
        values = stage1.losses(batch, SampleRNG(1, range(4)), torch.tensor(4.0))
        return [float(values[name].detach()) for name in sorted(values)]

    plain = losses()
    cached = make_texts(fresh_backbone, root)
    batch = replace(batch, encoded=cached.read([text for texts in texts_of(batch).values() for text in texts]))
    fresh_backbone.text_encoder = CountingEncoder(fresh_backbone.text_encoder)
    assert losses() == pytest.approx(plain, rel=1e-5, abs=1e-6)
    assert stage1.probe is not None and fresh_backbone.text_encoder.prompts == 0
    assert len(list(stage1.probe.answer_batch(batch, [0, 1, 2, 3], "files"))) == 12
    assert fresh_backbone.text_encoder.prompts == 0
    assert list(stage1.probe.answer_batch(collate([stream()[0]]), [0], "scenes"))
    assert fresh_backbone.text_encoder.prompts > 0, "the texts of rendered scenes are not in the cache"


def test_non_finite_states_are_refused(fresh_backbone: Backbone, root: DataRoot) -> None:
    fresh_backbone.text_encoder.final_layer_norm.bias[0] = torch.nan
    with pytest.raises(DataError, match=r"the model's output for '.*' is not finite"):
        make_texts(fresh_backbone, root)


def test_corrupted_shard_is_refused(fresh_backbone: Backbone, root: DataRoot) -> None:
    cached = make_texts(fresh_backbone, root)
    (file,) = (root.path / "cache/texts").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")
    content[first:] = bytes(byte ^ 1 for byte in content[first:])
    file.write_bytes(content)
    prompts: Sequence[str] = list(cached.part.rows)
    with pytest.raises(DataError, match=r"shard-00000\.safetensors is corrupted"):
        cached.read(prompts)
    stream = Stream(training_files(root, "refall", FRAMING, 1), 0, text_cache=cached)
    with pytest.raises(DataError, match=r"shard-00000\.safetensors is corrupted"):
        next(load(stream, [[0]], workers=1))
