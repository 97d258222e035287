"""Named schedulers. Importing this file is cheap: diffusers is imported when a scheduler is made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpt.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from dpt.backbone.base import Grid

MODELS_OWN = "own"

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}

_FLOW_SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

FLOW_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("FlowMatchEulerDiscreteScheduler", {}),  # on a straight line, DDIM's step is Euler's
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_FLOW_SOLVER}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **_FLOW_SOLVER}),
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", _FLOW_SOLVER),
}
"""What the names mean for a model of rectified flow."""

SCHEDULER_NAMES = (MODELS_OWN, *SCHEDULERS)


def check_name(name: str) -> None:
    if name not in SCHEDULER_NAMES:
        raise UserError(f"there is no scheduler {name!r}; the names are {', '.join(SCHEDULER_NAMES)}")


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """The named scheduler with the noise schedule and prediction type of the model's scheduler config."""
    from dpt.backbone.noise import STEP_RULE, is_flow

    check_name(name)
    flow = is_flow(config)
    table = FLOW_SCHEDULERS if flow else SCHEDULERS
    if name not in (MODELS_OWN, *table):
        raise UserError(
            f"the scheduler {name!r} is not for flow matching models; choose {', '.join((MODELS_OWN, *table))}"
        )
    class_name, changes = (config.get("_class_name", ""), {}) if name == MODELS_OWN else table[name]
    scheduler_class = _scheduler_class(class_name)
    known = inspect.signature(scheduler_class.__init__).parameters
    settings = {key: value for key, value in config.items() if key in known and not key.startswith("_")}
    if flow and "flow_shift" in known:
        settings.setdefault("flow_shift", config.get("shift", 1.0))
        settings["use_dynamic_shifting"] = False  # the step rule sets flow_shift
    # DDIM and DDPM clip their estimate of z_0 to [-1,1] by default; latents are not so bounded.
    if "clip_sample" in known:
        settings.setdefault("clip_sample", False)
    try:
        scheduler = scheduler_class(**{**settings, **changes})
        scheduler.step_rule = config.get(STEP_RULE)
        return scheduler
    except (TypeError, ValueError, NotImplementedError, ImportError) as error:
        raise UserError(f"the scheduler {name!r} cannot work with this model: {error}") from None


def set_steps(
    scheduler: Any,
    steps: int,
    device: Any = "cpu",
    latent_size: Grid | None = None,
    spacing: Mapping[str, Sequence[float]] | None = None,
) -> int:
    """Set the timesteps; returns how often the denoiser will be called (twice a step for some schedulers).

    Some models shift their timesteps by the size of the latents; without one it is their default. `spacing` gives
    the `timesteps` or the `sigmas` themselves.
    """
    rule = getattr(scheduler, "step_rule", None)
    arguments = {} if rule is None else rule.arguments(scheduler, steps, latent_size)
    if spacing:
        arguments = {**{name: value for name, value in arguments.items() if name != "sigmas"}, **spacing}
        _check_spacing(scheduler, spacing)
    count = None if spacing or "sigmas" in arguments else steps
    try:
        scheduler.set_timesteps(count, device=device, **arguments)
    except (ValueError, IndexError) as error:
        raise UserError(f"{type(scheduler).__name__} cannot take {steps} steps: {error}") from None
    return len(scheduler.timesteps)


def _check_spacing(scheduler: Any, spacing: Mapping[str, Sequence[float]]) -> None:
    if len(spacing) > 1:
        raise UserError("give timesteps or sigmas, not both")
    (name,) = spacing
    if name not in inspect.signature(scheduler.set_timesteps).parameters:
        raise UserError(
            f"{type(scheduler).__name__} takes no {name}: give num_inference_steps, or set another scheduler"
        )


def scale_model_input(scheduler: Any, z: Tensor, t: Tensor) -> Tensor:
    """The denoiser's input for a state; the flow matching schedulers do not scale it."""
    scaled: Tensor = scheduler.scale_model_input(z, t) if hasattr(scheduler, "scale_model_input") else z
    return scaled


def check_movable(scheduler: Any) -> None:
    """Refuse schedulers that are not known to accept changed latents between steps."""
    name = type(scheduler).__name__
    if name not in {class_name for class_name, _ in (*SCHEDULERS.values(), *FLOW_SCHEDULERS.values())}:
        raise UserError(f"a correction cannot move the state of {name}: choose one of {', '.join(SCHEDULERS)}")
    if scheduler.config.get("skip_prk_steps") is False:
        raise UserError(f"a correction cannot move the state of {name} in its Runge-Kutta steps: choose pndm")


def continues_from_its_sample(scheduler: Any) -> bool:
    """Whether the next step starts from the sample it is given.

    The second calls of Heun and of PNDM's first step start from the sample of the first call.
    """
    return getattr(scheduler, "state_in_first_order", True) and getattr(scheduler, "counter", 0) != 1


def forget_last_sample(scheduler: Any) -> None:
    """Keep UniPC from recomputing the sample from the previous one, which would undo a hook's change."""
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample = None


def _scheduler_class(class_name: str) -> Any:
    import diffusers

    scheduler_class = getattr(diffusers, class_name, None)
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, diffusers.SchedulerMixin)):
        raise UserError(f"the model asks for the scheduler {class_name!r}, which diffusers does not have")
    return scheduler_class
