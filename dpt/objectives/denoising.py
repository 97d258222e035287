"""The denoising loss, and min-SNR weighting of it (arXiv 2303.09556)."""

from __future__ import annotations

from torch import Tensor

from dpt.backbone.device import full_precision
from dpt.errors import UserError


@full_precision
def denoising_loss(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_mse: mean of (predicted - target)^2 over each sample (B,...), then over the batch, weighted by (B,)."""
    by_sample = (predicted - target).square().flatten(1).mean(dim=1)
    return (by_sample if weight is None else weight * by_sample).mean()


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """The weight min(snr, gamma) of the error in z_0, as a weight of the error in what is predicted.

    An error in v is larger than the one in z_0 by (snr + 1), one in epsilon by snr.
    """
    match prediction_type:
        case "epsilon":
            return (gamma / snr).clamp(max=1)
        case "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        case "sample":
            return snr.clamp(max=gamma)
        case _:
            raise UserError(f"min-SNR weighting is not known for the prediction type {prediction_type!r}")
