"""From the data flags to sources of examples: rendered scenes, or files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dpt.backbone import Backbone
from dpt.cli.train_options import DataOptions
from dpt.data.example import EveryNth, Source
from dpt.data.files.root import DataRoot
from dpt.data.files.source import LatentStore, expression_files, matching_files, training_files
from dpt.data.framing import Framing
from dpt.data.scene_source import SceneSource
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
        source, held_out = _scenes(options, framing, seed)
    else:
        source, held_out = _files(options, DataRoot(options.data_root), framing, seed, latents)
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


def _scenes(options: DataOptions, framing: Framing, seed: int) -> tuple[Source, dict[str, Source]]:
    world = WORLDS[options.scenes]
    still = replace(framing, random_flip=False)
    held_out = SceneSource(world, VALIDATION_SEED, "val", still, options.validation_scenes)
    return SceneSource(world, seed, "train", framing), {"scenes": held_out}


def _files(
    options: DataOptions, root: DataRoot, framing: Framing, seed: int, latents: LatentStore | None
) -> tuple[Source, dict[str, Source]]:
    if not root.path.is_dir():
        raise UserError(f"there is no data folder {root.path}")
    still = replace(framing, random_flip=False)
    chosen = (options.dataset_name_val,) if options.dataset_name_val else options.combine_datasets_val
    held_out: dict[str, Source] = {
        name: _part(expression_files(root, name, "val", still, VALIDATION_SEED, latents), STRIDES.get(name, 1), options)
        for name in chosen
    }
    held_out["captions"] = _part(matching_files(root, "val", still, VALIDATION_SEED, latents), MATCHING_STRIDE, options)
    return training_files(root, options.dataset_name, framing, seed, latents), held_out


def _part(source: Source, stride: int, options: DataOptions) -> Source:
    return source if options.val_fullset else EveryNth(source, stride)
