"""Data flags to sources of examples, with the cache they read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dpt.backbone import Backbone
from dpt.cli.train.options import DataOptions
from dpt.data.cache import latents, texts
from dpt.data.cache.contents import FREE, differences, latents_key, texts_key
from dpt.data.cache.latents import CachedLatents, NpyLatents
from dpt.data.cache.storage import CachePart, UnfinishedPartError
from dpt.data.cache.texts import CachedTexts
from dpt.data.example import Source
from dpt.data.files.root import DataRoot
from dpt.data.files.source import LatentStore, expression_files, matching_files, training_files
from dpt.data.images import Framing
from dpt.data.mixture import EveryNth
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import WORLDS
from dpt.data.stream import Stream
from dpt.errors import UserError

VALIDATION_SEED = 0

STRIDES = {"refcoco": 8, "refcoco+": 16, "refcocog": 8}

MATCHING_STRIDE = 20


def framing_of(options: DataOptions, backbone: Backbone) -> Framing:
    return Framing(side(options.resolution, backbone), options.center_crop, options.random_flip)


def open_data(
    options: DataOptions, framing: Framing, seed: int, latents: LatentStore | None = None
) -> tuple[Source, Mapping[str, Stream]]:
    """What to train on, and by name what to validate on: always the same examples, whatever the seed."""
    if options.data_root is None:
        source, held_out = _scene_sources(options, framing, seed)
    else:
        source, held_out = _file_sources(options, DataRoot(options.data_root), framing, seed, latents)
    budget = options.corrupt_budget
    return source, {
        name: Stream(one, VALIDATION_SEED, shuffle=False, corrupt_budget=budget) for name, one in held_out.items()
    }


def side(asked: int | None, backbone: Backbone) -> int:
    height, width = backbone.default_image_size
    if asked is None and height != width:
        raise UserError(f"the model was trained at {width}x{height}; say which square to train at with --resolution")
    resolution = height if asked is None else asked
    backbone.latent_size(resolution, resolution)
    return resolution


def _scene_sources(options: DataOptions, framing: Framing, seed: int) -> tuple[Source, dict[str, Source]]:
    world = WORLDS[options.scenes]
    still = replace(framing, random_flip=False)
    held_out = SceneSource(world, VALIDATION_SEED, "val", still, options.validation_scenes)
    return SceneSource(world, seed, "train", framing), {"scenes": held_out}


def _file_sources(
    options: DataOptions, root: DataRoot, framing: Framing, seed: int, latents: LatentStore | None
) -> tuple[Source, dict[str, Source]]:
    if not root.path.is_dir():
        raise UserError(f"there is no data folder {root.path}")
    still = replace(framing, random_flip=False)
    chosen = (options.dataset_name_val,) if options.dataset_name_val else options.combine_datasets_val
    held_out: dict[str, Source] = {
        name: _every_nth(
            expression_files(root, name, "val", still, VALIDATION_SEED, latents), STRIDES.get(name, 1), options
        )
        for name in chosen
    }
    held_out["captions"] = _every_nth(
        matching_files(root, "val", still, VALIDATION_SEED, latents), MATCHING_STRIDE, options
    )
    return training_files(root, options.dataset_name, framing, seed, latents), held_out


def _every_nth(source: Source, stride: int, options: DataOptions) -> Source:
    return source if options.val_fullset else EveryNth(source, stride)


AUTO, NONE = "auto", "none"

BESIDE = "cache"
"""Where under the data root a cache is looked for."""


@dataclass(frozen=True)
class TrainingCache:
    latents: LatentStore | None = None
    texts: CachedTexts | None = None
    said: tuple[str, ...] = ()
    identity: str | None = None
    """Of what is read: the numbers of another cache, or of none, agree to rounding but not to the bit."""


def open_cache(options: DataOptions, framing: Framing, backbone: Backbone) -> TrainingCache:
    """With `auto` what is not there, or not finished, is done without; a folder that was named is used or refused."""
    named = options.cache not in (AUTO, NONE)
    if options.data_root is None and named:
        raise UserError("--cache needs --data_root: scenes that are rendered on the spot are not cached")
    if options.data_root is None or options.cache == NONE:
        return TrainingCache()
    folder = Path(options.cache).expanduser() if named else options.data_root / BESIDE
    parts = [folder / name for name in (latents.FOLDER, texts.FOLDER)]
    if not any(part.is_dir() for part in parts):
        if not named:
            return TrainingCache()
        return _published(folder, framing, backbone)
    opened: dict[Path, CachePart] = {}
    said = []
    for part in parts:
        try:
            if part.is_dir():
                opened[part] = CachePart.open(part)
        except UnfinishedPartError as error:
            if named:
                raise
            said.append(f"{error}; until then it is not used")
    stored = _open_latents(opened.get(parts[0]), options.data_root, framing, backbone)
    known = _open_texts(opened.get(parts[1]), backbone)
    if opened:
        said.append(f"using the cache {folder}: {'; '.join(str(one) for one in (stored, known) if one is not None)}")
    identity = ", ".join(f"{path.name} {part.digest[:16]}" for path, part in opened.items())
    return TrainingCache(stored, known, tuple(said), identity or None)


def _open_latents(part: CachePart | None, root: Path, framing: Framing, backbone: Backbone) -> CachedLatents | None:
    if part is None:
        return None
    _refuse(part, differences(part.key, latents_key(backbone.folder, framing), FREE))
    found = CachedLatents(part, DataRoot(root).images(""))
    if framing.random_flip and not found.has_mirrored:
        _refuse(part, ["it was made without --random_flip"])
    return found


def _open_texts(part: CachePart | None, backbone: Backbone) -> CachedTexts | None:
    if part is None:
        return None
    _refuse(part, differences(part.key, texts_key(backbone.folder, backbone.dtype)))
    return CachedTexts(part)


def _refuse(part: CachePart, differing: list[str]) -> None:
    if differing:
        raise UserError(
            f"the cache {part.folder} is not for this run ({'; '.join(differing)}): make one for it with"
            " `dpt cache … --out FOLDER` and name it with --cache FOLDER, or say --cache none"
        )


def _published(folder: Path, framing: Framing, backbone: Backbone) -> TrainingCache:
    side = framing.resolution
    store = NpyLatents(folder, (backbone.latent_channels, *backbone.latent_size(side, side)))
    if not store.stems:
        raise UserError(f"{folder} is no cache: it has neither {latents.FOLDER}/ nor {texts.FOLDER}/ nor .npy files")
    if framing.random_flip:
        raise UserError(f"{folder} has no latents of mirrored pictures: do without --random_flip, or use `dpt cache`")
    warnings.warn(f"nothing says which model made the latents in {folder}, or how: that is on trust", stacklevel=2)
    return TrainingCache(store, None, (f"using {folder}: {store}",), f"published latents {store.digest[:16]}")
