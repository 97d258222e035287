"""Schedulers by name."""

from __future__ import annotations

import pytest

from dpt.errors import UserError
from dpt.sampling.schedulers import SCHEDULER_NAMES, make_scheduler, set_steps

CONFIG = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "skip_prk_steps": True,
    "steps_offset": 1,
}


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_every_scheduler_keeps_the_models_noise_schedule(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    scheduler = make_scheduler(name, CONFIG)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_end == 0.012
    assert set_steps(scheduler, 5) >= 5
    assert capfd.readouterr() == ("", "")


def test_own_selects_the_models_scheduler() -> None:
    assert type(make_scheduler("own", CONFIG)).__name__ == "PNDMScheduler"


def test_latents_are_clipped_only_if_the_model_config_says_so() -> None:
    assert make_scheduler("ddim", CONFIG).config.clip_sample is False
    assert make_scheduler("ddim", {**CONFIG, "clip_sample": True}).config.clip_sample is True


def test_unknown_name_lists_the_available_ones() -> None:
    with pytest.raises(UserError, match="no scheduler 'plms'; the names are own, ddim, "):
        make_scheduler("plms", CONFIG)


def test_class_that_is_not_a_scheduler_is_refused() -> None:
    with pytest.raises(UserError, match="'AutoencoderKL'"):
        make_scheduler("own", {**CONFIG, "_class_name": "AutoencoderKL"})


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(UserError, match="DDIMScheduler cannot take 1001 steps"):
        set_steps(make_scheduler("ddim", CONFIG), 1001)
