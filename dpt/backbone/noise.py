"""Noise schedules, DDPM's and rectified flow's: how latents are noised, what a network predicts from the mixture."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpt.backbone.base import Grid
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


FLOW = "flow_prediction"
"""The prediction type, as diffusers' solvers call it."""


class RectifiedFlow:
    """z_t = (1 - s) z_0 + s eps with s = t / num_timesteps; the network predicts v = eps - z_0 (Esser et al. 2024)."""

    prediction_type = FLOW

    def __init__(self, scheduler_config: Mapping[str, Any], image_tokens: int) -> None:
        """`image_tokens` is the number at the model's default size: a scheduler may shift its sigmas by it."""
        try:
            self._timesteps = _training_timesteps(scheduler_config, image_tokens)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the scheduler's noise schedule cannot be built: {error}") from None

    @property
    def num_timesteps(self) -> int:
        return len(self._timesteps)

    def sample_t(self, rng: SampleRNG, purpose: str = "timestep") -> Tensor:
        """Logit-normal in the scheduler's shifted timesteps, (B,), float32."""
        return self.sample_logit_normal(rng, 0.0, 1.0, purpose)

    def sample_logit_normal(self, rng: SampleRNG, mean: float, std: float, purpose: str = "timestep") -> Tensor:
        """As diffusers' training scripts draw it: a negative mean draws more noise."""
        from diffusers.training_utils import compute_density_for_timestep_sampling

        draws = [
            compute_density_for_timestep_sampling(
                "logit_normal", 1, logit_mean=mean, logit_std=std, generator=generator
            )
            for generator in rng.generators(purpose)
        ]
        places = (torch.cat(draws) * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)
        return self._timesteps[places]

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        s = self._sigma(t, latents)
        return (1 - s) * latents + s * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - latents

    def x0(self, z_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return z_t - self._sigma(t, z_t) * output

    def eps(self, z_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return z_t + (1 - self._sigma(t, z_t)) * output

    def snr(self, t: Tensor) -> Tensor:
        """((1 - s) / s)^2, for t (B,)."""
        s = t.float() / self.num_timesteps
        return ((1 - s) / s) ** 2

    def level(self, t: float) -> float:
        return t / self.num_timesteps

    def timestep_at(self, level: float) -> int:
        return round(level * self.num_timesteps)

    def _sigma(self, t: Tensor, like: Tensor) -> Tensor:
        return (t.to(like.device, torch.float32) / self.num_timesteps).reshape(-1, 1, 1, 1).to(like.dtype)


STEP_RULE = "dpt_step_rule"
"""Key of a `StepRule` in `Backbone.scheduler_config`."""


@dataclass(frozen=True)
class StepRule:
    """How a family's pipeline sets the timesteps of sampling."""

    patch: int
    """Latent cells per image token, along one side."""
    default_latent_size: Grid
    gives_sigmas: bool
    """Whether the pipeline spaces the sigmas itself, from 1 to 1 / steps; else the scheduler does."""
    is_dynamic: bool
    """Whether the sigmas are shifted by the number of image tokens."""

    def arguments(self, scheduler: Any, steps: int, latent_size: Grid | None) -> dict[str, Any]:
        """What `set_timesteps` takes beside the number of steps, for latents of this size."""
        height, width = latent_size or self.default_latent_size
        arguments: dict[str, Any] = {}
        if self.is_dynamic:
            arguments["mu"] = resolution_shift(scheduler.config, height * width // self.patch**2)
        if scheduler.config.get("use_flow_sigmas"):  # a general solver: shifted by its config
            if self.is_dynamic:
                scheduler.register_to_config(flow_shift=math.exp(arguments["mu"]))
            return {}
        if self.gives_sigmas and "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            arguments["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        return arguments


def is_flow(scheduler_config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is one of rectified flow."""
    name = str(scheduler_config.get("_class_name", ""))
    return name.startswith("FlowMatch") or scheduler_config.get("prediction_type") == FLOW


def resolution_shift(scheduler_config: Mapping[str, Any], image_tokens: int) -> float:
    """mu: how far a scheduler with `use_dynamic_shifting` shifts its sigmas for this many image tokens."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    names = {"base_image_seq_len": "base_seq_len", "max_image_seq_len": "max_seq_len"}
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    given = {names.get(key, key): scheduler_config[key] for key in keys if scheduler_config.get(key) is not None}
    return float(calculate_shift(image_tokens, **given))


def _training_timesteps(scheduler_config: Mapping[str, Any], image_tokens: int) -> Tensor:
    """All timesteps, shifted, from the noisiest down."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    count = int(scheduler_config.get("num_train_timesteps", 1000))
    shift = float(scheduler_config.get("shift", scheduler_config.get("flow_shift", 1.0)))
    scheduler: Any = FlowMatchEulerDiscreteScheduler(count, shift=shift)
    sigmas: Tensor = scheduler.sigmas
    if scheduler_config.get("use_dynamic_shifting"):
        unshifted: Any = FlowMatchEulerDiscreteScheduler(
            count, time_shift_type=scheduler_config.get("time_shift_type", "exponential")
        )
        sigmas = unshifted.time_shift(resolution_shift(scheduler_config, image_tokens), 1.0, unshifted.sigmas)
    timesteps = sigmas * count
    if not all(math.isfinite(t) for t in (float(timesteps.min()), float(timesteps.max()))):
        raise ValueError("its sigmas are not finite")
    return timesteps
