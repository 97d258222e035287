"""Noise schedules: how latents are noised, and what a network predicts from the mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpt.backbone.device import widest_float
from dpt.backbone.rng import SampleRNG
from dpt.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class DDPMSchedule:
    """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, for t = 0 .. num_timesteps - 1 (DDPM, eq. 4)."""

    def __init__(self, scheduler_config: Mapping[str, Any], prediction_type: str | None = None) -> None:
        from diffusers import DDPMScheduler

        config = {key: value for key, value in scheduler_config.items() if not key.startswith("_")}
        self.prediction_type = prediction_type or str(config.get("prediction_type", "epsilon"))
        if self.prediction_type not in PREDICTION_TYPES:
            raise UserError(f"prediction type {self.prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
        try:
            # DDPM is used only for its betas: it knows every schedule, zero terminal SNR and given betas.
            betas = {key: config[key] for key in _BETA_KEYS if config.get(key) is not None}
            scheduler: Any = DDPMScheduler(**betas)
            self.alphas_cumprod: Tensor = scheduler.alphas_cumprod
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"the scheduler's noise schedule cannot be built: {error}") from None

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def sample_t(self, rng: SampleRNG, purpose: str = "timestep") -> Tensor:
        """Uniform over all timesteps, (B,)."""
        return rng.integers(self.num_timesteps, purpose)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t from z_0 (B,C,h,w), eps (B,C,h,w) and t (B,)."""
        signal, sigma = self._coefficients(latents, t)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should output for z_t: eps, or v = sqrt(abar) eps - sqrt(1 - abar) z_0, or z_0."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal, sigma = self._coefficients(latents, t)
        return signal * noise - sigma * latents

    def x0(self, z_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The z_0 that an output for z_t (B,C,h,w) implies; t may lie between two timesteps."""
        if self.prediction_type == "sample":
            return output
        signal, sigma = self._interpolated_coefficients(t, z_t)
        if self.prediction_type == "epsilon":
            return (z_t - sigma * output) / signal
        return signal * z_t - sigma * output

    def eps(self, z_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The noise that an output for z_t (B,C,h,w) implies; t may lie between two timesteps."""
        if self.prediction_type == "epsilon":
            return output
        signal, sigma = self._interpolated_coefficients(t, z_t)
        if self.prediction_type == "sample":
            return (z_t - signal * output) / sigma
        return sigma * z_t + signal * output

    def snr(self, t: Tensor) -> Tensor:
        """abar_t / (1 - abar_t), for t (B,)."""
        abar = self.alphas_cumprod.to(t.device)[t].float()
        return abar / (1 - abar)

    def level(self, t: float) -> float:
        """(t + 1) / num_timesteps: the last timestep is pure noise, and the picture comes after t = 0."""
        return (t + 1) / self.num_timesteps

    def timestep_at(self, level: float) -> int:
        return round(level * self.num_timesteps)

    def _coefficients(self, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), (B,1,1,1)."""
        abar = self.alphas_cumprod.to(latents.device)[t.to(latents.device)].reshape(-1, 1, 1, 1)
        return abar.sqrt().to(latents.dtype), (1 - abar).sqrt().to(latents.dtype)

    def _interpolated_coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The same with their ratio interpolated along t, as diffusers' schedulers do it. For one t, or (B,)."""
        precision = widest_float(like.device)
        # At pure noise, where z_t says nothing of z_0, diffusers takes abar to be 2^-24.
        abar = self.alphas_cumprod.double().clamp_min(2.0**-24).to(like.device, precision)
        ratio = ((1 - abar) / abar).sqrt()
        position = t.to(like.device, precision).reshape(-1, 1, 1, 1)
        below = position.floor().long().clamp(0, len(ratio) - 1)
        above = (below + 1).clamp(max=len(ratio) - 1)
        sigma = ratio[below].lerp(ratio[above], position - below)
        signal = 1 / (1 + sigma**2).sqrt()
        return signal.to(like.dtype), (sigma * signal).to(like.dtype)


_BETA_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
