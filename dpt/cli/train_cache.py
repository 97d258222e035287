"""Which cache a run reads: found beside its data, told, or none."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from dpt.backbone import Backbone
from dpt.cli.train_options import DataOptions
from dpt.data.cache import latents, texts
from dpt.data.cache.key import FREE, differences, latents_key, texts_key
from dpt.data.cache.latents import CachedLatents
from dpt.data.cache.npy import NpyLatents
from dpt.data.cache.part import Part, UnfinishedPart
from dpt.data.cache.texts import CachedTexts
from dpt.data.files.root import DataRoot
from dpt.data.files.source import LatentStore
from dpt.data.framing import Framing
from dpt.errors import UserError

AUTO, NONE = "auto", "none"
BESIDE = "cache"
"""Where under the data root a cache is looked for."""


@dataclass(frozen=True)
class Cache:
    latents: LatentStore | None = None
    texts: CachedTexts | None = None
    said: tuple[str, ...] = ()
    identity: str | None = None
    """Of what is read: the numbers of another cache, or of none, agree to rounding but not to the bit."""


def open_cache(options: DataOptions, framing: Framing, backbone: Backbone) -> Cache:
    """With `auto` what is not there, or not finished, is done without; a folder that was named is used or refused."""
    named = options.cache not in (AUTO, NONE)
    if options.data_root is None and named:
        raise UserError("--cache needs --data_root: scenes that are rendered on the spot are not cached")
    if options.data_root is None or options.cache == NONE:
        return Cache()
    folder = Path(options.cache).expanduser() if named else options.data_root / BESIDE
    parts = [folder / name for name in (latents.FOLDER, texts.FOLDER)]
    if not any(part.is_dir() for part in parts):
        if not named:
            return Cache()
        return _published(folder, framing, backbone)
    opened: dict[Path, Part] = {}
    said = []
    for part in parts:
        try:
            if part.is_dir():
                opened[part] = Part.open(part)
        except UnfinishedPart as error:
            if named:
                raise
            said.append(f"{error}; until then it is not used")
    stored = _latents(opened.get(parts[0]), options.data_root, framing, backbone)
    known = _texts(opened.get(parts[1]), backbone)
    if opened:
        said.append(f"using the cache {folder}: {'; '.join(str(one) for one in (stored, known) if one is not None)}")
    identity = ", ".join(f"{path.name} {part.digest[:16]}" for path, part in opened.items())
    return Cache(stored, known, tuple(said), identity or None)


def _latents(part: Part | None, root: Path, framing: Framing, backbone: Backbone) -> CachedLatents | None:
    if part is None:
        return None
    _refuse(part, differences(part.key, latents_key(backbone.folder, framing), FREE))
    found = CachedLatents(part, DataRoot(root).images(""))
    if framing.random_flip and not found.has_mirrored:
        _refuse(part, ["it was made without --random_flip"])
    return found


def _texts(part: Part | None, backbone: Backbone) -> CachedTexts | None:
    if part is None:
        return None
    _refuse(part, differences(part.key, texts_key(backbone.folder, backbone.dtype)))
    return CachedTexts(part)


def _refuse(part: Part, differing: list[str]) -> None:
    if differing:
        raise UserError(
            f"the cache {part.folder} is not for this run ({'; '.join(differing)}): make one for it with"
            " `dpt cache … --out FOLDER` and name it with --cache FOLDER, or say --cache none"
        )


def _published(folder: Path, framing: Framing, backbone: Backbone) -> Cache:
    side = framing.resolution
    store = NpyLatents(folder, (backbone.latent_channels, *backbone.latent_size(side, side)))
    if not store.stems:
        raise UserError(f"{folder} is no cache: it has neither {latents.FOLDER}/ nor {texts.FOLDER}/ nor .npy files")
    if framing.random_flip:
        raise UserError(f"{folder} has no latents of mirrored pictures: do without --random_flip, or use `dpt cache`")
    warnings.warn(f"nothing says which model made the latents in {folder}, or how: that is on trust", stacklevel=2)
    return Cache(store, None, (f"using {folder}: {store}",), f"published latents {store.digest[:16]}")
