"""Latents as published: a file of numpy's for each picture, named after it, scaled already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpt.data.faults import DataFault
from dpt.data.pictures import Header, read_header


class NpyLatents:
    """A LatentStore. Nothing in it says which model made it, nor how the pictures were framed."""

    has_mirrored = False

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.folder, self.shape = folder, shape
        self.stems = {file.stem for file in folder.glob("*.npy")}

    def covers(self, file_names: Iterable[str]) -> bool:
        return any(Path(name).stem in self.stems for name in file_names)

    def latents(self, picture: Path, mirrored: bool = False) -> Tensor:
        if mirrored:
            raise DataFault(f"{self.folder} has no latents of mirrored pictures")
        file = self.folder / f"{picture.stem}.npy"
        if picture.stem not in self.stems:
            raise DataFault(f"{picture} has no latents: there is no file {file}")
        try:
            # Mapped, so that a header that claims more than the file holds costs no memory.
            values = np.load(file, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # headers are met with errors of every kind
            raise DataFault(f"{file} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.shape != self.shape:
            raise DataFault(f"{file} should hold latents of the shape {self.shape}, not {_told(values)}")
        latents = torch.from_numpy(np.array(values, np.float32))
        if not torch.isfinite(latents).all():
            raise DataFault(f"{file} holds numbers that are not finite")
        return latents

    def header(self, picture: Path) -> Header:
        """Sizes are not published: boxes need the picture's own."""
        return read_header(picture)

    @cached_property
    def digest(self) -> str:
        """Of what is there, by name."""
        return hashlib.sha256("\n".join(sorted(self.stems)).encode()).hexdigest()

    def __str__(self) -> str:
        return f"published latents of {len(self.stems)} picture{'' if len(self.stems) == 1 else 's'}"


def _told(values: object) -> str:
    if not isinstance(values, np.ndarray):
        return "several arrays"
    return f"{values.dtype} of {values.shape}"
