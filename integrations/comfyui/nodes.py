"""The nodes: load model and adapter for scoring, and make a guider of them."""

from __future__ import annotations

from typing import Any, ClassVar

from dpt import Correction
from dpt.sampling.options import NORMS, Interval

from .guider import CorrectedGuider, LoadedScorer, load_scorer

SCORER = "DPT_SCORER"

CATEGORY = "sampling/custom_sampling/guiders"


class DPTLoadScorer:
    """Opens the base model a second time, for the gradient, with an adapter that was trained to read it."""

    RETURN_TYPES = (SCORER,)
    RETURN_NAMES = ("scorer",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        model = {"default": "", "tooltip": "the base model in the diffusers layout: a folder or a hub id"}
        checkpoint = {"default": "", "tooltip": "the folder of a training run, with adapter/"}
        return {"required": {"model_folder": ("STRING", model), "checkpoint": ("STRING", checkpoint)}}

    def load(self, model_folder: str, checkpoint: str) -> tuple[LoadedScorer]:
        return (load_scorer(model_folder.strip(), checkpoint.strip()),)


class DPTGuider:
    """Classifier-free guidance with self-correction, for SamplerCustomAdvanced."""

    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "make"
    CATEGORY = CATEGORY

    FLOATS: ClassVar[dict[str, Any]] = {
        "cfg": {"default": 7.5, "min": 0.0, "max": 100.0, "step": 0.1},
        "factor": {"default": 0.05, "min": -10.0, "max": 10.0, "step": 0.01, "tooltip": "0 turns the correction off"},
        "start": {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": "0 is pure noise, 1 the image"},
        "end": {"default": 0.6, "min": 0.0, "max": 1.0, "step": 0.05},
    }

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prompt = {"multiline": True, "tooltip": "the text of the positive conditioning, which the adapter scores"}
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "scorer": (SCORER,),
                "prompt": ("STRING", prompt),
                **{name: ("FLOAT", options) for name, options in cls.FLOATS.items()},
                "norm": (list(NORMS), {"default": "rms"}),
            }
        }

    def make(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        scorer: LoadedScorer,
        prompt: str,
        cfg: float,
        factor: float,
        start: float,
        end: float,
        norm: str,
    ) -> tuple[CorrectedGuider]:
        guider = CorrectedGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        guider.set_correction(scorer, prompt, Correction(factor, "input", norm, Interval(start, end)))
        return (guider,)


NODE_CLASS_MAPPINGS = {"DPTLoadScorer": DPTLoadScorer, "DPTGuider": DPTGuider}

NODE_DISPLAY_NAME_MAPPINGS = {"DPTLoadScorer": "DPT: load scorer", "DPTGuider": "DPT: guider"}
