"""How large the gradient of each loss of stage 2 is in the LoRA, and how far it agrees with the denoising loss.

    python benchmarks/gradients.py FLAGS_OF_TRAIN_STAGE2 --max_train_steps 12 --output_dir runs/gradients

Trains as train_stage2.py does. Every step also takes the gradient of each loss alone, which takes seven times as long.
Prints the mean over the steps: the length of the gradient, times the weight of the loss, and the cosine with the
gradient of the denoising loss.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dpt.backbone.rng import SampleRNG
from dpt.cli.train.main import main
from dpt.cli.train.stages import Stage2Options
from dpt.cli.train.tasks import stage2
from dpt.data.example import Batch
from dpt.training.tasks.denoising import MSE
from dpt.training.tasks.stages import Stage2


class Measured:
    """Called instead of `Stage2.losses`; keeps the lengths and cosines of every call."""

    def __init__(self, task: Stage2) -> None:
        self.task, self.losses_of = task, task.losses
        self.lengths: dict[str, list[float]] = {}
        self.cosines: dict[str, list[float]] = {}

    def __call__(self, batch: Batch, rng: SampleRNG, num_boxes: Tensor) -> dict[str, Tensor]:
        losses = self.losses_of(batch, rng, num_boxes)
        gradients = {name: self._gradient(loss) for name, loss in losses.items() if loss.requires_grad}
        for name, gradient in gradients.items():
            self.lengths.setdefault(name, []).append(float(gradient.norm()))
            cosine = torch.nn.functional.cosine_similarity(gradient, gradients[MSE], dim=0)
            self.cosines.setdefault(name, []).append(float(cosine))
        return losses

    def _gradient(self, loss: Tensor) -> Tensor:
        parameters = list(self.task.lora.weights.parameters())
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    def table(self) -> str:
        weights: Mapping[str, float] = self.task.weights
        lines = ["| loss | weight | gradient | times the weight | cosine with mse |", "|---|---|---|---|---|"]
        for name, lengths in self.lengths.items():
            length, cosine = (sum(values) / len(values) for values in (lengths, self.cosines[name]))
            cells = (name, f"{weights[name]:g}", f"{length:.3f}", f"{weights[name] * length:.2f}", f"{cosine:+.2f}")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


measured: list[Measured] = []


def build(options: Stage2Options, backbone: Any, validation: Any) -> tuple[Stage2, dict[str, str]]:
    task, weights = stage2(options, backbone, validation)
    if not (isinstance(task, Stage2) and task.weights[MSE]):
        sys.exit("compared with the denoising loss: give neither --plain_lora nor --mse_loss_coef 0")
    measured.append(Measured(task))
    task.losses = measured[0]  # type: ignore[method-assign]
    return task, weights


if __name__ == "__main__":
    code = main(Stage2Options, "benchmarks/gradients.py", f"{__name__}:build")
    if measured and measured[0].lengths:
        print(measured[0].table())
    sys.exit(code)
