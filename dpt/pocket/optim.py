"""The optimizer of the pocket's stages: low-precision working weights, fp32 masters, an average of the masters."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rate(step: int, total: int, peak: float, warmup: int, decay: int) -> float:
    """Learning rate of `step`: linear warm-up, flat, then linear to zero over the last `decay` steps."""
    up = min(1.0, (step + 1) / max(1, warmup))
    down = min(1.0, (total - step) / max(1, decay))
    return peak * min(up, down)


class MasterWeights:
    """AdamW on fp32 copies of a model that computes in another dtype, and their exponential average.

    On a CPU with bf16 instructions this halves the time of a step and costs no precision in the update.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, betas: tuple[float, float], decay: float) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.masters = [p.detach().clone().float() for _, p in named]
        self.average = [master.clone() for master in self.masters]
        self.working = [p for _, p in named]
        for p in self.working:
            p.data = p.data.to(dtype)
        groups = [
            {"params": [m for m in self.masters if m.ndim > 1], "weight_decay": decay},
            {"params": [m for m in self.masters if m.ndim <= 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, foreach=True)

    def take_gradients(self) -> list[Tensor]:
        """Move the working weights' gradients to the masters, in fp32."""
        for master, p in zip(self.masters, self.working, strict=True):
            master.grad = torch.zeros_like(master) if p.grad is None else p.grad.float()
            p.grad = None
        return [master.grad for master in self.masters if master.grad is not None]

    def step(self, learning_rate: float, clip: float, averaging: float) -> Tensor:
        """One update; returns the gradient norm before clipping. A gradient that is not finite is not applied."""
        norm = torch.nn.utils.clip_grad_norm_(self.masters, clip, foreach=True)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        if torch.isfinite(norm):
            self.adam.step()
            torch._foreach_lerp_(self.average, self.masters, 1.0 - averaging)
            self._publish(self.masters)
        return norm

    def use_average(self) -> None:
        self._publish(self.average)

    def use_current(self) -> None:
        self._publish(self.masters)

    def named_average(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    @torch.no_grad()
    def _publish(self, source: list[Tensor]) -> None:
        for p, value in zip(self.working, source, strict=True):
            p.copy_(value)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        moments: dict[str, Tensor] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            for key, value in self.adam.state.get(master, {}).items():
                moments[f"{name}|{key}"] = value
        return {
            "weights": dict(zip(self.names, self.masters, strict=True)),
            "average": self.named_average(),
            "moments": moments,
        }

    def restore(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        if set(tensors["weights"]) != set(self.names):
            odd = sorted(set(tensors["weights"]) ^ set(self.names))
            raise ValueError(f"the checkpoint is of another model; tensors in one only: {odd[:4]}")
        with torch.no_grad():
            for name, master, average in zip(self.names, self.masters, self.average, strict=True):
                master.copy_(tensors["weights"][name])
                average.copy_(tensors["average"][name])
        for name, master in zip(self.names, self.masters, strict=True):
            moments = {k.split("|")[1]: v for k, v in tensors["moments"].items() if k.split("|")[0] == name}
            mine = {k: v.to(master.device) if v.ndim else v for k, v in moments.items()}  # Adam's step count stays put
            if mine:
                self.adam.state[master] = mine
        self.use_current()
