"""Values of the public reference: the small part stored here, or all of them in the folder DPT_GOLDEN."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
FULL = os.environ.get("DPT_GOLDEN", "")
TOLERANCE = 1e-5

_ALL, _10TH = slice(None), slice(None, None, 10)
Cut = tuple[slice, ...]
# Which part of a large tensor is kept. All others are kept whole.
CUTS: dict[str, Cut] = {
    "pos_embedding": (_ALL, slice(None, None, 5), slice(None, None, 5)),
    "src_proj": (_ALL, slice(None, None, 4), slice(None, None, 5), slice(None, None, 5)),
    "encoder_memory": (_ALL, slice(None, None, 4), slice(None, None, 5), slice(None, None, 5)),
    "decoder_out": (_ALL, _ALL, _10TH, slice(None, None, 4)),
    "q_emb_matching": (_ALL, _ALL, slice(None, None, 3), slice(None, None, 16)),
    "pred_logits": (_ALL, _10TH, slice(None, None, 2)),
    "proj_queries": (_ALL, _10TH),
    "itm_score_grad_feat": (_ALL, slice(None, None, 64), slice(None, None, 5), slice(None, None, 5)),
    "itm.fp32.grad_img_cond_different_txt": (_ALL, _ALL, _ALL, slice(None, None, 32)),
    "itm.fp32.grad_different_img_cond_same_txt": (_ALL, _ALL, _ALL, slice(None, None, 32)),
    "rec.binary.grad.pred_logits": (_ALL, _10TH, slice(None, None, 2)),
    "rec.normalized.grad.pred_logits": (_ALL, _10TH, slice(None, None, 2)),
    "rec.binary.grad.proj_queries": (_ALL, slice(None, None, 4)),
    "rec.normalized.grad.proj_queries": (_ALL, slice(None, None, 4)),
}
# Inputs that the recipe makes again.
INPUTS = (
    "feat_up1",
    "pooled_text",
    "itm.img_cond_different_txt",
    "itm.different_img_cond_same_txt",
    "itm.all_txt",
    "rec.pred_logits",
    "rec.pred_boxes",
    "rec.proj_queries",
    "rec.proj_tokens",
    "mse.pred",
    "mse.target",
)


@dataclass(frozen=True)
class Reference:
    values: dict[str, Tensor]
    texts: dict[str, Any]
    cut: bool

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def distance(self, name: str, computed: Tensor) -> float:
        selected = computed[CUTS[name]] if self.cut and name in CUTS else computed
        expected = self.values[name]
        assert selected.shape == expected.shape, f"{name}: {tuple(selected.shape)} is not {tuple(expected.shape)}"
        return float((selected.detach().double() - expected.double()).abs().max())

    def agrees(self, name: str, computed: Tensor, tolerance: float = TOLERANCE) -> None:
        difference = self.distance(name, computed)
        assert difference <= tolerance, f"{name} differs by {difference:.2g}"


def reduced() -> Reference:
    return Reference(load_file(HERE / "reference.safetensors"), _texts(HERE), cut=True)


def full() -> Reference:
    if not FULL:
        pytest.skip("DPT_GOLDEN does not name the folder with all reference values")
    values = {}
    for name in ("golden_adapter.pt", "golden_losses.pt"):
        values |= torch.load(Path(FULL) / name, weights_only=True)
    return Reference(values, _texts(Path(FULL)), cut=False)


def load(which: str) -> Reference:
    return full() if which == "full" else reduced()


def key_shapes() -> dict[str, Sequence[int]]:
    """The published adapter's tensors."""
    shapes: dict[str, Sequence[int]] = json.loads((HERE / "keys.json").read_text())
    return shapes


def _texts(folder: Path) -> dict[str, Any]:
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("rec_text", "rec_adapter_text")}
