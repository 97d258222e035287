"""Which device and dtype are chosen, and that nothing needs float64 on a device without it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dpt.backbone import noise
from dpt.backbone.device import resolve_device, resolve_dtype, widest_float
from dpt.backbone.noise import DDPMSchedule
from dpt.errors import UserError

SOURCES = Path(__file__).parents[2] / "dpt"


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_best_available_device_is_chosen(cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device().type == expected


def test_mps_uses_float32_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("mps")
    assert resolve_dtype(device) == torch.float32 and resolve_dtype(device, "fp16") == torch.float16
    assert widest_float(device) == torch.float32 and widest_float(torch.device("cpu")) == torch.float64
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no device mps"):
        resolve_device("mps")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_schedule_without_float64_agrees(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = DDPMSchedule({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, kind)
    z, output = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([1.0, 500.25, 998.0])
    exact = schedule.x0(z, output, t), schedule.eps(z, output, t)
    monkeypatch.setattr(noise, "widest_float", lambda device: torch.float32)
    torch.testing.assert_close((schedule.x0(z, output, t), schedule.eps(z, output, t)), exact, rtol=1e-4, atol=1e-4)


def test_float64_is_used_on_the_cpu_only() -> None:
    """Of torch tensors: on a device it is `widest_float`. NumPy has no device."""
    allowed = re.compile(
        r"np\.float64|\.cpu\(\)\.double\(\)|alphas_cumprod\.double|widest_float|^\s*\"\"\"|else torch\.float64"
    )
    used = [
        f"{file.relative_to(SOURCES)}:{number}: {line.strip()}"
        for room in ("backbone", "adapter", "objectives", "probes", "sampling", "score", "training", "data")
        for file in (SOURCES / room).rglob("*.py")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(r"float64|\.double\(\)", line) and not allowed.search(line)
    ]
    assert not used
