"""The cost of Stable Diffusion XL at its true size, counted on the meta device."""

from __future__ import annotations

import pytest
import sampling
import sdxl_cost
import torch
from models import XL


@pytest.mark.nightly
def test_operations_and_memory_at_true_size() -> None:
    cost = sdxl_cost.count(XL, "up0")
    assert 6.7e12 < cost.forward < 6.8e12
    assert 0.78 < cost.partial / cost.forward < 0.80, "the feature lies late: early exit saves a fifth"
    assert 4.5 < cost.stage2 < 5.1 and 1.4 < cost.corrected < 1.45
    ways = {way: one for way, one in sampling.ways_for(25).items() if way in ("plain", "default")}
    flops = sampling.products(XL, ways)
    assert 1 < flops["default"] / flops["plain"] < 1.4
    with torch.device("meta"):
        gigabytes = float(sdxl_cost.memory(checkpointing=True)[-1])
    assert 7 < gigabytes < 24, "a LoRA fits one card of 24 GB"
