"""`dpt data …` and `dpt cache`: check and prepare a data folder before training on it, and encode it once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dpt.cli.train.options import Flag, FramingOptions, LoadingOptions
from dpt.embedded import EMBEDDED
from dpt.errors import UserError, fail


@dataclass(frozen=True)
class DataCheckOptions:
    """List what is missing or broken in a data folder. Exit code 2 if training would refuse it."""

    root: tyro.conf.Positional[Path]
    """The folder that holds coco/, ReC/ and ITM/, or images with metadata.jsonl."""
    dataset_name: str = "refall"
    """Referring expressions to train on, as in training."""
    combine_datasets_val: tuple[str, ...] = ("refcoco", "refcoco+", "refcocog")
    """Referring expressions to validate on, as in training."""
    dataset_name_val: str | None = None
    """Validate on this set of expressions instead of all of them combined, as in training."""
    decode: bool = False
    """Also decode every image that training uses. This finds truncated files and takes long."""


@dataclass(frozen=True)
class DataPrepareOptions:
    """Split the table of hard negatives into one small file per caption, which training reads faster."""

    root: tyro.conf.Positional[Path]
    """The folder that holds coco/, ReC/ and ITM/."""


def check(options: DataCheckOptions) -> None:
    from dpt.data.files import check as files
    from dpt.data.files.reading import DataRoot
    from dpt.data.files.source import FileSelection
    from dpt.data.folder import is_picture_folder

    if is_picture_folder(options.root):
        check_picture_folder(options)
        return
    chosen = (options.dataset_name_val,) if options.dataset_name_val else options.combine_datasets_val
    result = files.check(DataRoot.open(options.root), FileSelection(options.dataset_name, chosen), options.decode)
    print("\n".join(map(str, result.reports)))
    if result.refusal is not None:
        fail(f"{options.root} cannot be used: {result.refusal}")
    if result.bad:
        names = ", ".join(report.name for report in result.bad)
        fail(f"{options.root} cannot be used: {len(result.bad)} of {len(result.reports)} parts are broken: {names}")
    print(f"{options.root} can be used")


def check_picture_folder(options: DataCheckOptions) -> None:
    from dpt.data.folder import read_picture_folder
    from dpt.data.images import read_header, read_image

    rows = read_picture_folder(options.root)
    for name in dict.fromkeys(row.file_name for row in rows):
        (read_image if options.decode else read_header)(options.root / name, options.root)
    print(f"{options.root} can be used with --plain_lora: {len(rows)} captions of images")
    print(f"for stage 1 and stage 2: dpt data from-folder {options.root} --out FOLDER")


def prepare(options: DataPrepareOptions) -> None:
    from dpt.data.files.hard_negatives import prepare as prepare_folder
    from dpt.data.files.reading import DataRoot

    root = DataRoot.open(options.root)
    written = prepare_folder(root)
    folder = root.hard_negatives("train")
    print(f"wrote {folder}" if written else f"{folder} is up to date")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class CacheOptions:
    """Encode the images of a data folder once, and with --texts its texts, so that training does not have to.

    The command can be stopped and repeated: it continues, and adds what is new in the data.
    """

    root: tyro.conf.Positional[Path]
    """The folder that holds coco/, ReC/ and ITM/."""
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    """The model that will be trained on. A folder is used without touching the network."""
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Revision of a hub model."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the text encoder on a GPU; use that of the training. Only --texts depends on it."""
    texts: Flag = False
    """Also store the text states of every caption and expression. Large: the command prints the size first."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number format of the stored latents. float16 halves the size and rounds to 11 binary digits."""
    batch_size: int = 16
    """Images, or texts, encoded per forward pass."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for the cache. Default: cache/ in the data folder, where training looks for it."""
    framing: FramingOptions = field(default_factory=FramingOptions)
    loading: LoadingOptions = field(default_factory=LoadingOptions)


def cache(options: CacheOptions) -> None:
    from dpt.cli.common.console import plain_warnings
    from dpt.distributed import processes

    with plain_warnings(), processes() as group:
        group.from_main(lambda: _cache(options))  # one process writes the cache; the launcher's other processes wait


def _cache(options: CacheOptions) -> None:
    _check(options)
    import torch

    from dpt.backbone import open_backbone
    from dpt.cli.train.data import CACHE_FOLDER, framing_of
    from dpt.data.cache.contents import cache_contents
    from dpt.data.cache.latents import CachedLatents, LatentsMaker
    from dpt.data.cache.make import PartMaker, make
    from dpt.data.cache.texts import CachedTexts, TextsMaker
    from dpt.data.files.reading import DataRoot
    from dpt.embedded import model_location

    root = DataRoot.open(options.root)
    contents = cache_contents(root, options.texts, options.framing.random_flip)
    backbone = open_backbone(
        model_location(options.pretrained_model_name_or_path),
        revision=options.revision,
        dtype="float32" if options.mixed_precision == "no" else options.mixed_precision,
    )
    framing = framing_of(options.framing, backbone)
    out = options.root / CACHE_FOLDER if options.out is None else options.out
    images, dtype = root.images(""), getattr(torch, options.dtype)
    latents = LatentsMaker(
        backbone, images, framing, contents.pictures, out, dtype,
        options.batch_size, options.loading.dataloader_num_workers, options.loading.corrupt_budget,
    )  # fmt: skip
    makers: list[PartMaker] = [latents]
    if options.texts:
        makers.append(TextsMaker(backbone, contents.texts, out, options.batch_size))
    try:
        latents_part, *texts_part = make(makers, print)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error):
            raise
        raise UserError("out of memory: lower --batch_size") from error
    print(f"{latents_part.folder} has {CachedLatents(latents_part, images)}")
    for part in texts_part:
        print(f"{part.folder} has {CachedTexts(part)}")


def _check(options: CacheOptions) -> None:
    """Check the options before anything is loaded."""
    options.loading.check()
    if options.batch_size < 1:
        fail(f"--batch_size must be at least 1, not {options.batch_size}")
