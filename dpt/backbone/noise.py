"""The forward process: how noise is mixed in, and what a network is asked to predict from the mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dpt.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class NoiseSchedule:
    """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, for t = 0 .. num_timesteps - 1 (DDPM, eq. 4)."""

    def __init__(self, scheduler_config: Mapping[str, Any], prediction_type: str | None = None) -> None:
        from diffusers import DDPMScheduler

        known = {key: value for key, value in scheduler_config.items() if not key.startswith("_")}
        self.prediction_type = prediction_type or str(known.get("prediction_type", "epsilon"))
        if self.prediction_type not in PREDICTION_TYPES:
            raise UserError(f"prediction type {self.prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
        try:
            # DDPM is used only for its betas: it knows every schedule, zero terminal SNR and given betas.
            betas = {key: known[key] for key in _BETA_KEYS if known.get(key) is not None}
            scheduler: Any = DDPMScheduler(**betas)
            self.alphas_cumprod: Tensor = scheduler.alphas_cumprod
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"the scheduler's noise schedule cannot be built: {error}") from None

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t from z_0 (B,C,H,W), eps (B,C,H,W) and t (B,)."""
        signal, spread = self._mixture(latents, t)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should output for z_t: eps, or v = sqrt(abar) eps - sqrt(1 - abar) z_0, or z_0."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal, spread = self._mixture(latents, t)
        return signal * noise - spread * latents

    def parts(self, z_t: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The z_0 and eps that a prediction for z_t (B,C,H,W) amounts to; t may lie between two timesteps."""
        signal, spread = self._mixture_at(t, z_t)
        if self.prediction_type == "epsilon":
            return (z_t - spread * prediction) / signal, prediction
        if self.prediction_type == "sample":
            return prediction, (z_t - signal * prediction) / spread
        return signal * z_t - spread * prediction, spread * z_t + signal * prediction

    def leading_to(self, latents: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction for z_t (B,C,H,W) that amounts to a z_0 it was not mixed from, and sqrt(1 - abar) (B,)."""
        signal, spread = self._mixture(latents, t)
        if self.prediction_type == "epsilon":
            prediction = (z_t - signal * latents) / spread
        elif self.prediction_type == "sample":
            prediction = latents
        else:
            prediction = (signal * z_t - latents) / spread
        return prediction, spread.flatten()

    def _mixture_at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """As `_mixture`, with spread / signal interpolated along t, as schedulers do it. For one t, or (B,)."""
        # At pure noise, where z_t says nothing of z_0, abar is taken to be what diffusers takes it to be.
        abar = self.alphas_cumprod.double().clamp_min(2.0**-24).to(like.device)
        ratio = ((1 - abar) / abar).sqrt()
        at = t.to(like.device, torch.float64).reshape(-1, 1, 1, 1)
        below = at.floor().long().clamp(0, len(ratio) - 1)
        above = (below + 1).clamp(max=len(ratio) - 1)
        sigma = ratio[below].lerp(ratio[above], at - below)
        signal = 1 / (1 + sigma**2).sqrt()
        return signal.to(like.dtype), (sigma * signal).to(like.dtype)

    def _mixture(self, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_cumprod.to(latents.device)[t.to(latents.device)].reshape(-1, 1, 1, 1)
        return abar.sqrt().to(latents.dtype), (1 - abar).sqrt().to(latents.dtype)


_BETA_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
