"""A guider that moves what the conditional branch sees up the gradient of the adapter's matching score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from dpt import Adapter, Backbone, Condition, Correction, Scorer, UserError, open_backbone, open_checkpoint
from dpt.sampling.options import Guidance
from dpt.sampling.self_correction import SelfCorrection


@dataclass(frozen=True)
class LoadedScorer:
    """A second copy of the base model, in the diffusers layout, and the adapter that reads it."""

    backbone: Backbone
    adapter: Adapter


def load_scorer(model_folder: str, checkpoint: str, device: str | None = None) -> LoadedScorer:
    # ComfyUI runs nodes in inference mode, and tensors made there can never have a gradient.
    with torch.inference_mode(False):
        backbone = open_backbone(model_folder, device=device)
        opened = open_checkpoint(Path(checkpoint))
        opened.check_belongs(backbone)
        if opened.adapter is None:
            raise UserError(f"{checkpoint} has no adapter: give a result of train_stage1.py or train_stage2.py")
        if backbone.takes_sizes:
            raise UserError(f"{model_folder} is conditioned on image sizes (SDXL), which the guider cannot correct yet")
        return LoadedScorer(backbone, opened.adapter)


class CorrectedGuider(comfy.samplers.CFGGuider):  # type: ignore[misc]
    """Classifier-free guidance whose conditional branch is self-corrected, as `--correction_target input` does it."""

    def set_correction(self, loaded: LoadedScorer, prompt: str, correction: Correction) -> None:
        if not prompt.strip():
            raise UserError("the guider needs the prompt as text: what the image is scored against")
        with torch.inference_mode(False), torch.no_grad():
            self.text = loaded.backbone.encode_text([prompt])
        self.loaded, self.correction = loaded, replace(correction, target="input")

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The denoised latents at the noise level `timestep`, a sigma; ComfyUI's name is older than its meaning."""
        options = {} if model_options is None else model_options
        shift = self.shift(x, timestep)
        if shift is None:
            return super().predict_noise(x, timestep, options, seed)
        positive, negative = self.conds.get("positive"), self.conds.get("negative")
        moved = x + shift
        (denoised,) = comfy.samplers.calc_cond_batch(self.inner_model, [positive], moved, timestep, options)
        cond = uncond = denoised - shift  # the noise predicted at the moved input, removed from the one that was given
        if self.cfg != 1 and negative is not None:
            (uncond,) = comfy.samplers.calc_cond_batch(self.inner_model, [negative], x, timestep, options)
        return comfy.samplers.cfg_function(
            self.inner_model,
            cond,
            uncond,
            self.cfg,
            x,
            timestep,
            model_options=options,
            cond=positive,
            uncond=negative,
        )

    def shift(self, x: Tensor, sigma: Tensor) -> Tensor | None:
        """By how much the input moves, on ComfyUI's scale; None outside of the correction's interval."""
        backbone, sampling = self.loaded.backbone, self.inner_model.model_sampling
        if not self.correction.on:
            return None
        with torch.inference_mode(False):
            # Copies of tensors of inference mode can be differentiated again.
            latents, level = x.detach().clone().to(backbone.device, torch.float32), sigma[:1].detach().clone()
            t = sampling.timestep(level).float().reshape(()).to(backbone.device)
            if not self.correction.interval.contains(backbone.noise.level(float(t))):
                return None
            scale = sampling.calculate_input(level.to(backbone.device), torch.ones_like(latents))
            text: Condition = self.text[[0] * len(latents)]
            scorer = Scorer(backbone, self.loaded.adapter)
            corrected = SelfCorrection(backbone, text, text, Guidance(1.0), self.correction, scorer)
            shift = corrected.shift_at(latents * scale, t) / scale
            return shift.to(x.device, x.dtype)
