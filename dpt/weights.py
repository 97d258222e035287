"""Weights on disk: safetensors files are checked before they are used, and fill a module exactly or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpt.errors import UserError
from dpt.files import sha256
from dpt.untrusted import check_regular, is_safe_pickle

M = TypeVar("M", bound=nn.Module)


def write_weights(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file and return its SHA-256: the format has no checksum of its own."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_tensors(content, file, {"format": "pt", **(metadata or {})})
    return sha256(file)


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """As safetensors does it, but with the permissions of other files, and a full disk is an OSError."""
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(dict(tensors), file, metadata=dict(metadata) if metadata else None)
        file.chmod(mode)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_weights(file: Path, expected_sha256: str = "") -> dict[str, Tensor]:
    """All tensors of a safetensors file on the CPU."""
    try:
        check_regular(file)
        if expected_sha256 and sha256(file) != expected_sha256:
            raise UserError(f"{file} is damaged: its SHA-256 differs from that of the saved file")
        return load_file(file)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{file.parent} has no {file.name}") from None
    except (SafetensorError, OSError):
        raise UserError(f"{file} is truncated or not a safetensors file") from None
    except Exception as error:  # e.g. a dtype that this version of torch lacks
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {error}") from None


def read_pickle(file: Path, what: str) -> object:
    """The content of a file of `torch.save`, read without running anything in it."""
    try:
        check_regular(file)
        _refuse_compressed(file)
        if not is_safe_pickle(file):
            raise ValueError
        content: object = torch.load(file, map_location="cpu", weights_only=True)
        _check_sums(file)
        return content
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no {what} {file}") from None
    except Exception:  # whatever torch raises, the file is at fault
        raise UserError(f"{file} was not read: it is truncated, not a checkpoint, or holds more than tensors") from None


def has_checksums(file: Path) -> bool:
    """Whether `torch.save` wrote a CRC-32 per tensor; before torch 1.6 it did not."""
    return zipfile.is_zipfile(file)


def _check_sums(file: Path) -> None:
    """torch writes checksums but does not check them."""
    if not has_checksums(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception:  # encryption, other versions, odd names: torch wrote none of it
        damaged = "its list of contents"
    if damaged:
        raise UserError(f"{file} is damaged: {damaged} in it is not what was saved (its CRC-32 differs)")


def is_plain(tensor: Tensor) -> bool:
    """Whether all its numbers are in the file: a stride of 0 would make terabytes of four bytes."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.is_floating_point() and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _refuse_compressed(file: Path) -> None:
    """torch never compresses: a file that is small on disk and large in memory was made to do harm."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # an older format, or damaged, which reading it will show
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"{file} is compressed, as no checkpoint is")
    if sum(member.file_size for member in members) > file.stat().st_size:
        raise UserError(f"{file} declares more content than it has bytes")


def build_strictly(build: Callable[[], M], tensors: Mapping[str, Tensor], where: str, into: str = "the adapter") -> M:
    """The module that `build` makes, filled with `tensors`. Shapes are compared before any memory is taken for it."""
    try:
        with torch.device("meta"):
            outline = build()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # torch refuses impossible sizes with errors of many kinds and lengths
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{into} that {where} describes cannot be built: {reason[:200]}") from None
    check_shapes(outline.state_dict(), tensors, where, into)
    module = build()
    load_strictly(module, tensors, where, into)
    return module


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str, into: str = "the adapter") -> int:
    """Fill all tensors of the module, converting the float format; return how many. Anything else is an error."""
    expected = module.state_dict()
    check_shapes(expected, tensors, where, into)
    check_numbers({name: tensor for name, tensor in tensors.items() if expected[name].is_floating_point()}, where)
    module.load_state_dict(dict(tensors), strict=True)
    return len(expected)


def check_shapes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str, into: str) -> None:
    faults = [f"{key} is missing" for key in expected if key not in tensors]
    faults += [f"{key} is left over" for key in tensors if key not in expected]
    faults += [
        f"{key} is {shape(tensors[key])} instead of {shape(tensor)}"
        for key, tensor in expected.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    if faults:
        raise UserError(f"the weights in {where} do not fit {into}: {listed(faults)}")


def check_numbers(tensors: Mapping[str, Tensor], where: str) -> None:
    """Weights are finite floating-point numbers. Anything else must not be converted."""
    if wrong := [name for name, tensor in tensors.items() if not _is_weight(tensor)]:
        kind = str(tensors[wrong[0]].dtype).removeprefix("torch.")
        raise UserError(f"{where} does not hold floating-point weights: {wrong[0]} is of type {kind}")
    if wrong := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise UserError(
            f"{where} holds NaN or infinite weights, in {listed(wrong)}: its training diverged or the file is damaged; "
            "use an earlier checkpoint"
        )


def _is_weight(tensor: Tensor) -> bool:
    """torch can store float4 but not compute with it."""
    return tensor.is_floating_point() and "float4" not in str(tensor.dtype)


def is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta:
        return True
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def listed(names: Iterable[str]) -> str:
    """The first three, and how many more."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
