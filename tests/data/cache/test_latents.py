"""Cached latents equal the encoder's, and sources behave the same with them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dpt.backbone import Backbone, open_backbone
from dpt.backbone.rng import SampleRNG
from dpt.data.cache import storage
from dpt.data.cache.latents import CachedLatents
from dpt.data.cache.storage import CachePart
from dpt.data.example import Batch, Example, collate
from dpt.data.files.reading import DataRoot
from dpt.data.files.source import FileSource, expression_files, matching_files, training_files
from dpt.data.images import Framing, read_header, read_image
from dpt.data.stream import Stream, load
from dpt.errors import BrokenImageError, DataError
from tests.data.cache.conftest import FRAMING, contents, make_latents
from tests.training.children import end_of_child
from tests.training.tiny_stage1 import task

FRAMINGS = {"squash": FRAMING, "crop": Framing(64, center_crop=True), "flip": Framing(64, random_flip=True)}


def sources(root: DataRoot, framing: Framing, latents: CachedLatents | None = None) -> list[FileSource]:
    return [
        training_files(root, "refall", framing, 1, latents),
        expression_files(root, "refcocog", "val", framing, 0, latents),
        matching_files(root, "val", framing, 0, latents),
    ]


@pytest.mark.parametrize("framing_name", FRAMINGS)
def test_cached_examples_equal_encoded_ones(backbone: Backbone, root: DataRoot, framing_name: str) -> None:
    """Bit for bit at equal batch sizes; convolutions round differently in other batches."""
    framing = FRAMINGS[framing_name]
    cached = make_latents(backbone, root, framing, batch_size=1)
    for plain, cached_source in zip(sources(root, framing), sources(root, framing, cached), strict=True):
        for index in range(len(plain)):
            expected, actual = plain[index], cached_source[index]
            assert (actual.id, actual.texts, actual.expression) == (expected.id, expected.texts, expected.expression)
            for picture, latent in zip(expected.pictures, actual.pictures, strict=True):
                assert latent.latent and latent.name == picture.name
                assert torch.equal(latent.values, backbone.encode_images(picture.values[None])[0])


@pytest.mark.parametrize("framing_name", FRAMINGS)
def test_cached_latents_give_the_same_losses(backbone: Backbone, root: DataRoot, framing_name: str) -> None:
    framing = FRAMINGS[framing_name]
    plain = training_files(root, "refall", framing, 1)
    cached = training_files(root, "refall", framing, 1, make_latents(backbone, root, framing))
    stage1 = task(backbone, adapter={"dropout": 0.0})

    def losses(source: FileSource) -> torch.Tensor:
        batch = collate([source[index] for index in range(6)])
        values = stage1.losses(batch, SampleRNG(1, range(6)), torch.tensor(float(stage1.count(batch))))
        return torch.stack([values[name] for name in sorted(values)])

    torch.testing.assert_close(losses(cached), losses(plain), rtol=1e-6, atol=1e-6)


def test_no_image_is_opened_with_a_cache(backbone: Backbone, root: DataRoot) -> None:
    expected = [[source[i] for i in range(len(source))] for source in sources(root, FRAMING)]
    make_latents(backbone, root)
    shutil.rmtree(root.images(""))
    cached = CachedLatents(CachePart.open(root.path / "cache/latents"), root.images(""))
    for source, examples in zip(sources(root, FRAMING, cached), expected, strict=True):
        assert [source[i].expression for i in range(len(source))] == [example.expression for example in examples]


def test_cache_stores_the_header_of_rotated_images(backbone: Backbone, root: DataRoot) -> None:
    first = training_files(root, "refall", FRAMING, 1)
    assert first.expressions is not None
    path = first.images / first.expressions[0].file_name
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100), "red").save(path, exif=exif)
    header = read_header(path)
    cached = make_latents(backbone, root)
    path.unlink()
    assert cached.header(path) == header and header.size == (100, 200)


def test_workers_read_the_same_latents(backbone: Backbone, root: DataRoot) -> None:
    framing = FRAMINGS["flip"]
    source = training_files(root, "refall", framing, 1, make_latents(backbone, root, framing))

    def batches(workers: int) -> list[Batch]:
        return list(load(Stream(source, 3), [[0, 1], [2, 3, 4], [5]], workers))

    for single_process, with_workers in zip(batches(0), batches(2), strict=True):
        assert single_process.ids == with_workers.ids and torch.equal(single_process.images, with_workers.images)


def test_workers_write_the_same_cache(backbone: Backbone, root: DataRoot) -> None:
    make_latents(backbone, root)
    alone = contents(root.path / "cache")
    shutil.rmtree(root.path / "cache")
    make_latents(backbone, root, workers=2)
    assert contents(root.path / "cache") == alone


def test_float16_cache_rounds_to_eleven_binary_digits(backbone: Backbone, root: DataRoot) -> None:
    whole = make_latents(backbone, root)
    shutil.move(root.path / "cache", root.path / "whole")
    half = make_latents(backbone, root, dtype=torch.float16)
    whole = CachedLatents(CachePart.open(root.path / "whole/latents"), root.images(""))
    for name in whole.part.rows:
        path = root.images("") / name
        torch.testing.assert_close(half.latents(path), whole.latents(path), rtol=2**-11, atol=2**-25)
        assert half.latents(path).dtype == torch.float32
    assert not torch.equal(half.latents(path), whole.latents(path))


def test_image_missing_from_the_cache_is_refused(backbone: Backbone, root: DataRoot) -> None:
    cached = make_latents(backbone, root)
    with pytest.raises(DataError, match=r"train2014/new\.jpg is not in the cache .*: `dpt cache` adds what is missing"):
        cached.latents(root.images("train2014") / "new.jpg")


def test_missing_mirrored_latents_are_refused(backbone: Backbone, root: DataRoot) -> None:
    cached = make_latents(backbone, root)
    with pytest.raises(DataError, match="no latents of mirrored images: make one with --random_flip"):
        training_files(root, "refall", FRAMINGS["flip"], 0, cached)


# Broken images


def break_first_image(root: DataRoot) -> Path:
    """Truncate the image of the first expression."""
    source = training_files(root, "refall", FRAMING, 1)
    assert source.expressions is not None
    path = source.images / source.expressions[0].file_name
    path.write_bytes(path.read_bytes()[:300])
    return path


def examples_of_two_epochs(source: FileSource, budget: int) -> list[Example]:
    stream = Stream(source, 3, corrupt_budget=budget)
    return [stream[position] for position in range(2 * len(source))]


def test_broken_image_stays_broken_in_the_cache(backbone: Backbone, root: DataRoot) -> None:
    """Within the budget it is replaced by the same examples, for the same reason, as without a cache."""
    path = break_first_image(root)
    with pytest.warns(UserWarning, match=f"{path.name} cannot be used: .* allowed"):
        cached = make_latents(backbone, root, corrupt_budget=1)
    expected = examples_of_two_epochs(training_files(root, "refall", FRAMING, 1), 1)
    shutil.rmtree(root.images(""))
    actual = examples_of_two_epochs(training_files(root, "refall", FRAMING, 1, cached), 1)
    assert [(example.id, example.skipped) for example in actual] == [
        (example.id, example.skipped) for example in expected
    ]
    assert any(example.skipped for example in actual)
    with pytest.raises(BrokenImageError, match=f"{path.name} cannot be used"):
        examples_of_two_epochs(training_files(root, "refall", FRAMING, 1, cached), 0)


def test_too_many_broken_images_stop_the_cache(backbone: Backbone, root: DataRoot) -> None:
    path = break_first_image(root)
    with pytest.raises(BrokenImageError, match=f"{path.name} cannot be used"):
        make_latents(backbone, root)
    missing = sorted(root.images("val2014").iterdir())[0]
    missing.unlink()
    with pytest.warns(UserWarning), pytest.raises(DataError, match="more than 1 images are broken"):
        make_latents(backbone, root, corrupt_budget=1)
    assert not list((root.path / "cache/latents").glob("shard-*")), "no partial shard is left"
    with pytest.warns(UserWarning):
        cached = make_latents(backbone, root, corrupt_budget=2)
    with pytest.raises(BrokenImageError, match="there is no such file"):
        cached.latents(missing)
    with pytest.raises(BrokenImageError):  # broken images of an earlier run count too
        make_latents(backbone, root)


def test_repaired_image_is_encoded(backbone: Backbone, root: DataRoot, exported: DataRoot) -> None:
    path = break_first_image(root)
    with pytest.warns(UserWarning):
        make_latents(backbone, root, corrupt_budget=1)
    shutil.copy(exported.path / path.relative_to(root.path), path)
    cached = make_latents(backbone, root)
    assert not cached.part.broken and cached.latents(path).isfinite().all()


def test_changed_image_is_encoded_again(backbone: Backbone, root: DataRoot) -> None:
    cached = make_latents(backbone, root)
    path = root.images("train2014") / sorted(root.images("train2014").iterdir())[0].name
    before = cached.latents(path)
    Image.new("RGB", (64, 64), "red").save(path)
    with pytest.raises(DataError, match=rf"{path.name} is not the image that the cache .* was made of"):
        CachedLatents(cached.part, root.images(""))
    after = make_latents(backbone, root, batch_size=1).latents(path)
    pixels = FRAMING.pixels(read_image(path)[0])
    assert torch.equal(after, backbone.encode_images(pixels[None])[0])
    assert not torch.equal(before, after)


def test_non_finite_latents_are_refused(model: Path, root: DataRoot) -> None:
    backbone = open_backbone(model, device="cpu")
    backbone.vae.quant_conv.bias[0] = torch.inf
    with pytest.raises(DataError, match=r"the model's output for 'train2014/COCO_.*\.jpg' is not finite"):
        make_latents(backbone, root)
    assert not list((root.path / "cache/latents").glob("shard-*"))


# Kill and resume


def test_killed_run_resumes(backbone: Backbone, root: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = root.path / "cache"
    make_latents(backbone, root, shard_bytes=1)
    expected = contents(cache)
    shutil.rmtree(cache)
    write_shard = storage.write_shard

    def kill_at_the_fifth_shard(file: Path, *arguments: Any) -> Any:
        if file.stem == "shard-00004":
            os.kill(os.getpid(), signal.SIGKILL)
        return write_shard(file, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_shard", kill_at_the_fifth_shard)
        assert end_of_child(lambda: make_latents(backbone, root, shard_bytes=1, workers=1)) == -signal.SIGKILL
    after_kill = contents(cache)
    assert "latents/manifest.json" not in after_kill and "latents/shard-00003.json" in after_kill
    mtimes = {name: (cache / name).stat().st_mtime_ns for name in after_kill if name.startswith("latents/shard-0000")}
    make_latents(backbone, root, shard_bytes=1)
    assert contents(cache) == expected
    assert all((cache / name).stat().st_mtime_ns == mtimes[name] for name in list(mtimes)[:4]), (
        "finished shards are not rewritten"
    )


def test_new_images_are_added(backbone: Backbone, root: DataRoot) -> None:
    shutil.move(root.hard_negatives_table("val"), root.path / "aside")
    few = make_latents(backbone, root)
    shutil.move(root.path / "aside", root.hard_negatives_table("val"))
    first = root.path / "cache/latents/shard-00000.safetensors"
    before = first.stat().st_mtime_ns
    more = make_latents(backbone, root)
    assert few.part.rows.keys() < more.part.rows.keys() and first.stat().st_mtime_ns == before
    assert {Path(name).parts[0] for name in more.part.rows.keys() - few.part.rows.keys()} == {"val2014"}
