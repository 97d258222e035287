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
from dpt.data.files.root import DataRoot
from dpt.data.files.source import matching_files, training_files
from dpt.data.images import Framing
from dpt.data.pairs import CAPTION, encode_texts, texts_of
from dpt.data.stream import Stream, load
from dpt.errors import DataError
from tests.data.cache.conftest import FRAMING, make_texts
from tests.training.tiny_stage1 import stream


class Counting:
    """A text encoder that tells how many prompts it has met."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.prompts = encoder, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def __call__(self, ids: torch.Tensor, **options: Any) -> Any:
        self.prompts += len(ids)
        return self.encoder(ids, **options)


@pytest.fixture
def own(model: Path) -> Backbone:
    """To be changed."""
    return open_backbone(model, device="cpu")


def same(found: Condition, expected: Condition) -> None:
    torch.testing.assert_close(found.states, expected.states, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.match, expected.match, rtol=0, atol=1e-6)


def test_cached_texts_are_not_encoded_and_others_are(own: Backbone, root: DataRoot) -> None:
    known = make_texts(own, root)
    texts = [*cache_contents(root, texts=True, random_flip=False).texts[:3], "never said", "nor this"]
    mixed = [texts[3], texts[0], texts[4], texts[1], texts[0], texts[3], texts[2]]
    expected = own.encode_text(mixed), own.encode_text(texts[:3]), own.encode_text(texts[3:])
    own.text_encoder = Counting(own.text_encoder)
    for prompts, encoded, condition in zip((mixed, texts[:3], texts[3:]), (2, 0, 2), expected, strict=True):
        own.text_encoder.prompts = 0
        images = [Example(prompt, ExampleImage(prompt, torch.zeros(3, 8, 8)), prompt) for prompt in prompts]
        batch = replace(collate(images), encoded=known.read(prompts))
        same(encode_texts(own, batch, {CAPTION})[CAPTION], condition)
        assert own.text_encoder.prompts == encoded
    assert known.read(["never said"]) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_reads_them_ahead_of_the_step(own: Backbone, root: DataRoot, workers: int) -> None:
    source = training_files(root, "refall", FRAMING, 1)
    stream = Stream(source, 0, text_cache=make_texts(own, root)).only(CAPTION_ONLY)
    (batch,) = load(stream, [[0, 1, 2]], workers)
    assert batch.captions is not None and batch.encoded is not None
    assert set(batch.encoded.rows) == set(batch.captions)
    expected = own.encode_text(batch.captions)
    shutil.rmtree(root.path / "cache")
    own.text_encoder = Counting(own.text_encoder)
    same(encode_texts(own, batch.to("cpu"), {CAPTION})[CAPTION], expected)
    assert own.text_encoder.prompts == 0


def asked(source: Any) -> set[str]:
    return {text for epoch in range(30) for i in range(len(source)) for text in source.example(i, epoch).texts}


@pytest.mark.parametrize("random_flip", [False, True])
def test_it_has_every_text_that_is_asked_for(root: DataRoot, random_flip: bool) -> None:
    framing = Framing(64, random_flip=random_flip)
    texts = set(cache_contents(root, texts=True, random_flip=random_flip).texts)
    for source in (training_files(root, "refall", framing, 1), matching_files(root, "val", FRAMING, 0)):
        assert asked(source) <= texts


def test_the_task_reads_them(own: Backbone, root: DataRoot) -> None:
    from dpt.backbone.rng import SampleRNG
    from tests.training.tiny_stage1 import task

    source = training_files(root, "refall", FRAMING, 1)
    batch = collate([source[index] for index in range(4)])
    stage1 = task(own, adapter={"dropout": 0.0})

    def losses() -> list[float]:
        found = stage1.losses(batch, SampleRNG(1, range(4)), torch.tensor(4.0))
        return [float(found[name].detach()) for name in sorted(found)]

    plain = losses()
    known = make_texts(own, root)
    batch = replace(batch, encoded=known.read([text for own in texts_of(batch).values() for text in own]))
    own.text_encoder = Counting(own.text_encoder)
    assert losses() == pytest.approx(plain, rel=1e-5, abs=1e-6)
    assert stage1.probe is not None and own.text_encoder.prompts == 0
    assert len(list(stage1.probe.answer_batch(batch, [0, 1, 2, 3], "files"))) == 12
    assert own.text_encoder.prompts == 0
    assert list(stage1.probe.answer_batch(collate([stream()[0]]), [0], "scenes"))
    assert own.text_encoder.prompts > 0, "scenes are said in other words"


def test_states_that_are_not_finite(own: Backbone, root: DataRoot) -> None:
    own.text_encoder.final_layer_norm.bias[0] = torch.nan
    with pytest.raises(DataError, match=r"the model's output for '.*' is not finite"):
        make_texts(own, root)


def test_a_corrupted_shard(own: Backbone, root: DataRoot) -> None:
    known = make_texts(own, root)
    (file,) = (root.path / "cache/texts").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")
    content[first:] = bytes(byte ^ 1 for byte in content[first:])
    file.write_bytes(content)
    prompts: Sequence[str] = list(known.part.rows)
    with pytest.raises(DataError, match=r"shard-00000\.safetensors is corrupted"):
        known.read(prompts)
    stream = Stream(training_files(root, "refall", FRAMING, 1), 0, text_cache=known)
    with pytest.raises(DataError, match=r"shard-00000\.safetensors is corrupted"):
        next(load(stream, [[0]], workers=1))
