"""Weights into an adapter: every tensor used, every tensor filled, or one sentence that says which is not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dpt.errors import UserError


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> int:
    """Returns how many tensors were applied. Numbers of another format are turned into the module's."""
    wanted = module.state_dict()
    faults = [f"{key} is missing" for key in wanted if key not in tensors]
    faults += [f"{key} is left over" for key in tensors if key not in wanted]
    faults += [
        f"{key} is {_shape(tensors[key])} instead of {_shape(tensor)}"
        for key, tensor in wanted.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    if faults:
        listed = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise UserError(f"the weights in {where} do not fit the adapter: {listed}")
    module.load_state_dict(dict(tensors), strict=True)
    return len(wanted)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
