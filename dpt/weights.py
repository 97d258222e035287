"""Files of weights: nothing damaged is read, and what is read fills its place exactly or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpt.errors import UserError


def write_weights(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> str:
    """The file's SHA-256. safetensors has no checksum of its own, so whoever writes one must keep this."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(content, file, metadata={"format": "pt", **(metadata or {})})
    return sha256(file)


def read_weights(file: Path, expected_sha256: str = "") -> dict[str, Tensor]:
    try:
        if expected_sha256 and sha256(file) != expected_sha256:
            raise UserError(f"{file} is damaged: it is not the file that was saved (its SHA-256 differs)")
        return load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file.parent} has no {file.name}") from None
    except (SafetensorError, OSError):
        raise UserError(f"{file} is truncated or not a safetensors file") from None
    except Exception as error:  # of a number format, for one, that this version of torch does not have
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {error}") from None


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str, into: str = "the adapter") -> int:
    """Returns how many tensors were applied. Numbers of another format are turned into the module's."""
    wanted = module.state_dict()
    check_shapes(wanted, tensors, where, into)
    module.load_state_dict(dict(tensors), strict=True)
    return len(wanted)


def check_shapes(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str, into: str) -> None:
    faults = [f"{key} is missing" for key in wanted if key not in tensors]
    faults += [f"{key} is left over" for key in tensors if key not in wanted]
    faults += [
        f"{key} is {_shape(tensors[key])} instead of {_shape(tensor)}"
        for key, tensor in wanted.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    if faults:
        listed = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise UserError(f"the weights in {where} do not fit {into}: {listed}")


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
