"""The ComfyUI nodes, against a stub of the interface that they use."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition, open_backbone
from dpt.errors import UserError
from dpt.sampling.options import Correction, Guidance, Interval
from dpt.sampling.self_correction import SelfCorrection
from dpt.score.matching import Scorer
from tests.training import tiny_stage1

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "integrations/comfyui"
SIGMA = torch.tensor([3.0, 3.0])


class ModelSampling:
    """ComfyUI's schedule of a model that predicts epsilon: x = z_0 + sigma eps."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma[:, None] - self.sigmas).abs().argmin(dim=1)

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (sigma.reshape(-1, 1, 1, 1) ** 2 + 1).sqrt()


class InnerModel:
    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.model_sampling = backbone, ModelSampling(backbone.noise.alphas_cumprod)

    def denoised(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        z, t = self.model_sampling.calculate_input(sigma, x), self.model_sampling.timestep(sigma)
        return x - sigma.reshape(-1, 1, 1, 1) * self.backbone.predict(z, t, condition)


class CFGGuider:
    def __init__(self, model_patcher: InnerModel) -> None:
        self.inner_model, self.conds, self.cfg = model_patcher, dict[str, Any](), 1.0

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.conds = {"positive": positive, "negative": negative}

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
        positive, negative = (self.conds[name] for name in ("positive", "negative"))
        cond, uncond = calc_cond_batch(self.inner_model, [positive, negative], x, timestep, model_options)
        return cfg_function(self.inner_model, cond, uncond, self.cfg, x, timestep)


def calc_cond_batch(model: InnerModel, conds: list[Condition], x: Tensor, timestep: Tensor, options: Any) -> list:
    return [model.denoised(x, timestep, condition) for condition in conds]


def cfg_function(
    model: Any, cond_pred: Tensor, uncond_pred: Tensor, cond_scale: float, x: Tensor, timestep: Tensor, **rest: Any
) -> Tensor:
    return uncond_pred + cond_scale * (cond_pred - uncond_pred)


@pytest.fixture(scope="module")
def nodes() -> Iterator[ModuleType]:
    """The node folder, loaded as ComfyUI loads one."""
    comfy, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    samplers.CFGGuider, samplers.calc_cond_batch = CFGGuider, calc_cond_batch  # type: ignore[attr-defined]
    comfy.samplers, samplers.cfg_function = samplers, cfg_function  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy", comfy)
        patch.setitem(sys.modules, "comfy.samplers", samplers)
        spec = importlib.util.spec_from_file_location(
            "dpt_nodes", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "dpt_nodes", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and an adapter that reads it."""
    folder = tiny_stage1.model(tmp_path_factory.mktemp("model"))
    run = tmp_path_factory.mktemp("run")
    tiny_stage1.task(open_backbone(folder, device="cpu")).export(run)
    return folder, run


def guider(nodes: ModuleType, folders: tuple[Path, Path], **changes: Any) -> tuple[Any, Any]:
    mappings = nodes.NODE_CLASS_MAPPINGS
    load, make = (mappings[name]() for name in ("DPTLoadScorer", "DPTGuider"))
    (scorer,) = getattr(load, load.FUNCTION)(*map(str, folders))
    backbone = scorer.backbone
    values = {name: options[1]["default"] for name, options in make.INPUT_TYPES()["required"].items()
              if len(options) > 1 and "default" in options[1]}  # fmt: skip
    values |= {"positive": backbone.encode_text(["a red circle"] * 2), "negative": backbone.encode_text([""] * 2)}
    values |= {"model": InnerModel(backbone), "scorer": scorer, "prompt": "a red circle", **changes}
    (made,) = getattr(make, make.FUNCTION)(**values)
    return made, backbone


@pytest.mark.parametrize(("cfg", "norm"), [(3.0, "rms"), (1.0, "none"), (3.0, "relative")])
def test_the_guider_predicts_what_self_correction_predicts(
    nodes: ModuleType, folders: tuple[Path, Path], cfg: float, norm: str
) -> None:
    """Under ComfyUI's inference mode, where nothing has a gradient unless it is asked for."""
    with torch.inference_mode():
        made, backbone = guider(nodes, folders, cfg=cfg, norm=norm, factor=0.5)
        x = 3 * torch.randn(2, 4, *backbone.latent_size(), generator=torch.Generator().manual_seed(0))
        denoised = made.predict_noise(x, SIGMA, {}, 0)
        uncorrected = CFGGuider.predict_noise(made, x, SIGMA)
    sampling = made.inner_model.model_sampling
    z, t = sampling.calculate_input(SIGMA, x.clone()), sampling.timestep(SIGMA)[0]
    text, negative = (backbone.encode_text([prompt] * 2) for prompt in ("a red circle", ""))
    correction = Correction(0.5, "input", norm, Interval(0, 0.6))
    scorer = Scorer(backbone, made.loaded.adapter)
    expected = SelfCorrection(backbone, text, negative, Guidance(cfg), correction, scorer)
    expected.due = True
    with torch.no_grad():
        eps = expected(z.clone(), t)
    torch.testing.assert_close(denoised.clone(), x.clone() - 3.0 * eps, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(denoised, uncorrected, atol=1e-3)


def test_without_factor_or_outside_of_the_interval_it_is_cfg(nodes: ModuleType, folders: tuple[Path, Path]) -> None:
    for changes in ({"factor": 0.0}, {"factor": 0.5, "start": 0.9, "end": 1.0}):
        with torch.inference_mode():
            made, backbone = guider(nodes, folders, cfg=3.0, **changes)
            x = torch.ones(2, 4, *backbone.latent_size())
            assert torch.equal(made.predict_noise(x, SIGMA), CFGGuider.predict_noise(made, x, SIGMA))


def test_mistakes_are_named(nodes: ModuleType, folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the guider needs the prompt as text"):
        guider(nodes, folders, prompt=" ")
    with pytest.raises(UserError, match="there is no checkpoint"):
        guider(nodes, (folders[0], tmp_path / "none"))
    with pytest.raises(UserError, match="start to an end with 0 <= start < end"):
        guider(nodes, folders, start=0.7)
