"""`dpt cache`: encode latents and text states once for every training of a model on a data folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dpt.cli.train.options import Flag, FramingOptions, LoadingOptions
from dpt.embedded import EMBEDDED
from dpt.errors import UserError, fail


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
    from dpt.data.files.root import DataRoot
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
