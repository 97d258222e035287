"""Open the training and validation data that the flags choose, and their cache."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dpt.backbone import Backbone
from dpt.cli.train.options import DataOptions, FramingOptions
from dpt.data.cache import latents, texts
from dpt.data.cache.contents import FREE, differences, latents_key, texts_key
from dpt.data.cache.latents import CachedLatents, NpyLatents
from dpt.data.cache.storage import CachePart, UnfinishedPartError
from dpt.data.cache.texts import CachedTexts
from dpt.data.example import CAPTION_ONLY, ExampleParts, Source
from dpt.data.files.reading import DataRoot
from dpt.data.files.source import FileSelection, FileSource, LatentStore, open_training_data
from dpt.data.folder import FolderSource, is_picture_folder, read_picture_folder
from dpt.data.images import Framing
from dpt.data.mixture import EveryNth
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import WORLDS
from dpt.data.stream import Stream
from dpt.errors import UserError
from dpt.keyed_random import KeyedRandom

VALIDATION_SEED = 0

STRIDES = {"refcoco": 8, "refcoco+": 16, "refcocog": 8, "captions": 20}
"""Validation reads every n-th example of these, unless --val_fullset."""


def framing_of(options: FramingOptions, backbone: Backbone) -> Framing:
    return Framing.for_model(backbone, options.resolution, options.center_crop, options.random_flip)


def open_data(
    options: DataOptions, framing: Framing, seed: int, cache: TrainingCache | None = None
) -> tuple[Source, Mapping[str, Stream]]:
    """The training source, and validation streams by name; validation does not depend on the seed."""
    cache = cache or TrainingCache()
    source: Source
    held_out: dict[str, Source]
    if options.data_root is None:
        source, held_out = _scene_sources(options, framing, seed)
    elif is_picture_folder(options.data_root):
        source, held_out = _folder_sources(options.data_root, options.val_fraction, framing, seed)
    else:
        source, held_out = _file_sources(options, DataRoot.open(options.data_root), framing, seed, cache.latents)
    if options.val_fraction and not isinstance(source, FolderSource):
        warnings.warn("--val_fraction has no effect: only a folder of images with captions is split", stacklevel=2)
    budget = options.loading.corrupt_budget
    return source, {
        name: Stream(examples, VALIDATION_SEED, shuffle=False, corrupt_budget=budget, text_cache=cache.texts)
        for name, examples in held_out.items()
    }


def _scene_sources(options: DataOptions, framing: Framing, seed: int) -> tuple[Source, dict[str, Source]]:
    world = WORLDS[options.scenes]
    unflipped = replace(framing, random_flip=False)
    held_out = SceneSource(world, VALIDATION_SEED, "val", unflipped, options.validation_scenes)
    return SceneSource(world, seed, "train", framing), {"scenes": held_out}


def _folder_sources(folder: Path, val_fraction: float, framing: Framing, seed: int) -> tuple[Source, dict[str, Source]]:
    """Captioned images; those held out do not depend on the seed of the run."""
    if not val_fraction:
        return FolderSource(folder, framing, seed), {}
    rows = read_picture_folder(folder)
    names = sorted({row.file_name for row in rows})
    count = max(1, round(val_fraction * len(names)))
    if count >= len(names):
        raise UserError(
            f"--val_fraction {val_fraction:g} of the {len(names)} images of {folder} leaves none to train on"
        )
    held_out = set(KeyedRandom("held out", VALIDATION_SEED).sample(names, count))
    train, validation = ([row for row in rows if (row.file_name in held_out) is out] for out in (False, True))
    unflipped = replace(framing, random_flip=False)
    return FolderSource(folder, framing, seed, train), {
        "captions": FolderSource(folder, unflipped, VALIDATION_SEED, validation)
    }


def _file_sources(
    options: DataOptions, root: DataRoot, framing: Framing, seed: int, latents: LatentStore | None
) -> tuple[Source, dict[str, Source]]:
    chosen = (options.dataset_name_val,) if options.dataset_name_val else options.combine_datasets_val
    selection = FileSelection(options.dataset_name, chosen)
    source, held_out = open_training_data(root, selection, framing, seed, VALIDATION_SEED, latents)
    if options.val_fullset:
        return source, dict(held_out)
    return source, {name: EveryNth(examples, STRIDES.get(name, 1)) for name, examples in held_out.items()}


def require_parts(source: Source, parts: ExampleParts) -> None:
    """Refuse a folder of captioned images for a task that also needs expressions or negatives."""
    if isinstance(source, FolderSource) and parts != CAPTION_ONLY:
        raise UserError(
            f"{source.folder} holds images and captions, which only train_stage2.py --plain_lora trains on: for"
            f" matching, make a data folder of it with `dpt data from-folder {source.folder} --out FOLDER`"
        )


def missing_parts(source: Source, parts: ExampleParts) -> list[str]:
    """A sentence for what the task would learn from and the data lack."""
    if parts.expression and isinstance(source, FileSource) and source.expressions is None:
        return [
            "the data have no referring expressions (ReC/): matching is trained, grounding is not "
            "(dpt data from-folder --detector owlv2 makes some)"
        ]
    return []


def data_identity(options: DataOptions, source: Source) -> str:
    """A hash of the training data that does not depend on its path. Scenes are described by other options."""
    if isinstance(source, FolderSource):
        return source.identity()
    return "scenes" if options.data_root is None else DataRoot(options.data_root).identity(options.dataset_name)


AUTO, NONE = "auto", "none"

CACHE_FOLDER = "cache"
"""Folder of the cache under the data root."""


@dataclass(frozen=True)
class TrainingCache:
    latents: LatentStore | None = None
    texts: CachedTexts | None = None
    messages: tuple[str, ...] = ()
    identity: str | None = None
    """Hash of the cache: results with another cache, or none, differ by rounding."""


def open_cache(options: DataOptions, framing: Framing, backbone: Backbone) -> TrainingCache:
    """Open the cache. With `auto`, a missing or unfinished cache is skipped; a named folder is used or refused."""
    named = options.cache not in (AUTO, NONE)
    if options.data_root is None and named:
        raise UserError("--cache needs --data_root: scenes that are rendered on the fly are not cached")
    if named and options.data_root is not None and is_picture_folder(options.data_root):
        raise UserError(f"--cache is not read for a folder of images as {options.data_root}: leave it out")
    if options.data_root is None or options.cache == NONE:
        return TrainingCache()
    folder = Path(options.cache).expanduser() if named else options.data_root / CACHE_FOLDER
    parts = [folder / name for name in (latents.FOLDER, texts.FOLDER)]
    if not any(part.is_dir() for part in parts):
        if not named:
            return TrainingCache()
        return _published(folder, framing, backbone)
    parts_read: dict[Path, CachePart] = {}
    messages = []
    for part in parts:
        try:
            if part.is_dir():
                parts_read[part] = CachePart.open(part)
        except UnfinishedPartError as error:
            if named:
                raise
            messages.append(f"{error}; until then it is not used")
    latents_cache = _open_latents(parts_read.get(parts[0]), options.data_root, framing, backbone)
    texts_cache = _open_texts(parts_read.get(parts[1]), backbone)
    if parts_read:
        caches = (str(cache) for cache in (latents_cache, texts_cache) if cache is not None)
        messages.append(f"using the cache {folder}: {'; '.join(caches)}")
    identity = ", ".join(f"{path.name} {part.digest[:16]}" for path, part in parts_read.items())
    return TrainingCache(latents_cache, texts_cache, tuple(messages), identity or None)


def _open_latents(part: CachePart | None, root: Path, framing: Framing, backbone: Backbone) -> CachedLatents | None:
    if part is None:
        return None
    _refuse(part, differences(part.key, latents_key(backbone.folder, framing, made=part.key), FREE))
    cached = CachedLatents(part, DataRoot(root).images(""))
    if framing.random_flip and not cached.has_mirrored:
        _refuse(part, ["it was made without --random_flip"])
    return cached


def _open_texts(part: CachePart | None, backbone: Backbone) -> CachedTexts | None:
    if part is None:
        return None
    _refuse(part, differences(part.key, texts_key(backbone.folder, backbone.dtype, part.key)))
    return CachedTexts(part)


def _refuse(part: CachePart, differing: list[str]) -> None:
    if differing:
        raise UserError(
            f"the cache {part.folder} is not for this run ({'; '.join(differing)}): make another with"
            " `dpt cache … --out FOLDER` and give --cache FOLDER, or --cache none"
        )


def _published(folder: Path, framing: Framing, backbone: Backbone) -> TrainingCache:
    side = framing.resolution
    store = NpyLatents(folder, (backbone.latent_channels, *backbone.latent_size(side, side)))
    if not store.stems:
        raise UserError(f"{folder} is not a cache: it has neither {latents.FOLDER}/ nor {texts.FOLDER}/ nor .npy files")
    if framing.random_flip:
        raise UserError(
            f"{folder} has no latents of mirrored images: leave out --random_flip, or make a cache with `dpt cache`"
        )
    warnings.warn(
        f"the latents in {folder} do not record their model or preprocessing: check that they fit this run",
        stacklevel=2,
    )
    return TrainingCache(store, None, (f"using {folder}: {store}",), f"published latents {store.digest[:16]}")
