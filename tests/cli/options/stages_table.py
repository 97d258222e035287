"""What is claimed of all flags of each training command: those that both have, and its own."""

from __future__ import annotations

from typing import Any

from pytest import approx

from tests.cli.options.checks import Effect, Proven, Refused, Table, Warned, differ
from tests.cli.options.rehearsal import Rehearsal
from tests.cli.options.training_table import COMMON, losses, only, weighs, without_norm


def gradients(r: Rehearsal) -> dict[str, Any]:
    return {name: gradient for name, gradient in r.step().applied.items() if name.startswith("lora.")}


def learning(r: Rehearsal) -> set[str]:
    """What is given a gradient, by the first part of its name."""
    return {name.split(".")[0] for name in r.step().applied}


def blocks(r: Rehearsal) -> set[str]:
    return {".".join(place.split(".")[:2]) for place in r.task.lora.targets}


def twice_as_steep(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """In B, which is zero, the gradient is proportional to what W + alpha / rank B A is scaled by."""
    pairs = [(before[name], after[name]) for name in before if "lora_B" in name and before[name].abs().max() > 1e-6]
    return bool(pairs) and all((2 * a - b).norm() < 1e-3 * b.norm() for a, b in pairs)


def cut(before: Any, after: Any) -> bool:
    """Every loss is what it was, and what moves the LoRA before the cut is not (in B: A's gradient is 0 at first)."""
    moving = [name for name in before[1] if "lora_B" in name]
    same = bool(before[0] == approx(after[0], rel=1e-4))
    return same and all(differ(before[1][name], after[1][name]) for name in moving)


def sheet(r: Rehearsal) -> tuple[int, int] | None:
    """The size of what is drawn when the run is done."""
    from PIL import Image

    file = r.loop.root / "samples.png"
    if not file.exists():
        r.loop.root.mkdir(parents=True, exist_ok=True)
        r.options.after(r.task)
    if not file.exists():
        return None
    with Image.open(file) as picture:
        return picture.size


STAGE_1: Table = {
    **COMMON,
    "prediction_type": Warned("epsilon", "--prediction_type has no effect: stage 1 reads features"),
    "validation_prompts": Warned("x", "--validation_prompts draws nothing in stage 1"),
    "num_validation_images": Warned("1", "--num_validation_images draws nothing in stage 1"),
    "snr_gamma": Refused("5", "--snr_gamma weighs the denoising loss, which stage 1 has not"),
}

ONE = "--num_validation_images 1"
UNCLIPPED = "--max_grad_norm 0"
STAGE_2: Table = {
    **COMMON,
    "prediction_type": Effect("epsilon", without_norm, only("mse")),
    "gradient_checkpointing": Effect("", lambda r: (r.step().read, r.step().passed, without_norm(r)),
                                     lambda a, b: b[:2] == (2 * a[0], 2 * a[1]) and a[2] == b[2]),
    "lora_rank": Effect("3", lambda r: {p.shape[0] for name, p in r.begun.items() if "lora_A" in name},
                        lambda a, b: b == {3} != a),
    "lora_alpha": Effect("4", gradients, twice_as_steep, beside=UNCLIPPED),
    "lora_blocks": Effect("mid", blocks, lambda a, b: b == {"mid_block.attentions"} != a),
    "only_train_lora": Effect("", learning, lambda a, b: a == {"adapter", "lora"} and b == {"lora"}),
    "plain_lora": Effect("", losses, lambda a, b: "i2t" in a and b.keys() == {"mse", "loss", "grad_norm"}),
    "mse_loss_coef": Effect("3", losses, weighs("mse", 2)),
    "snr_gamma": Effect("0.1", without_norm, only("mse")),
    "detach_unet_feature": Effect("bottom1", lambda r: (without_norm(r), gradients(r)), cut, beside=UNCLIPPED),
    "validation_prompts": Effect('"a star"', sheet, lambda a, b: a is None and b is not None, beside=ONE),
    "num_validation_images": Effect("2", sheet, lambda a, b: b[0] > 1.5 * a[0],
                                    beside=f'{ONE} --validation_prompts "a star"'),
    **dict.fromkeys(
        ("push_to_hub", "hub_token", "hub_model_id"),
        Proven("tests.cli.test_hub", "test_both_results_of_stage_2_are_uploaded"),
    ),
    "prompts_path_val": Proven("tests.cli.test_train_stage2", "test_alignment_is_measured_before_and_after"),
    "clip": Proven("tests.cli.test_train_stage2", "test_alignment_is_measured_before_and_after"),
}  # fmt: skip
