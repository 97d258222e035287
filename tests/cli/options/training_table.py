"""What each flag that both training commands have is claimed to do. {model} and its like are made by the test."""

from __future__ import annotations

from typing import Any

import torch
from pytest import approx

from dpt.backbone.speedups import compiled_blocks
from dpt.data.example import Example
from dpt.data.stream import load
from dpt.errors import UserError
from tests.cli.options.checks import Effect, Proven, Refused, Table, Warned, differ
from tests.cli.options.rehearsal import Rehearsal, folders

FILES = "--data_root {sample}"
SEVERAL = "--train_batch_size 4"


def laid_out_channels_last(r: Rehearsal) -> bool:
    weights = [p for p in r.backbone.unet.parameters() if p.ndim == 4 and 1 not in p.shape[1:]]
    return all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def losses(r: Rehearsal) -> dict[str, float]:
    return r.step().losses


def config(r: Rehearsal) -> Any:
    return r.task.adapter.config


def read(r: Rehearsal) -> Any:
    """What the adapter is and what it makes of the first batch."""
    return config(r), r.begun, losses(r)


def examples(r: Rehearsal) -> list[Example]:
    return [r.loop.stream[position] for position in range(6)]


def ids(r: Rehearsal) -> list[str]:
    return [one.id for one in examples(r)]


def shown(r: Rehearsal) -> tuple[Any, Any, Any]:
    """Pictures, texts and boxes."""
    boxes = [[region.box for region in one.expression.regions] for one in examples(r) if one.expression is not None]
    return [one.image.values for one in examples(r)], [one.texts for one in examples(r)], boxes


def gone_through(r: Rehearsal) -> bool:
    """Whether an epoch of the data is, though one picture is broken."""
    stream = r.loop.stream
    try:
        return len(list(load(stream, [[position] for position in range(len(stream))]))) > 0
    except UserError:
        return False


def all_differ(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return all(differ(*pair) for pair in zip(before, after, strict=True))


def held_out(r: Rehearsal) -> dict[str, int]:
    return {name: len(stream) for name, stream in r.task.probe.streams.items()}


def weighs(name: str, more: float) -> Any:
    """The total grows by so many times that loss, which is what it was."""

    def so(before: dict[str, float], after: dict[str, float]) -> bool:
        grown = after["loss"] - before["loss"]
        return abs(before[name]) > 1e-3 and abs(grown - more * before[name]) < 1e-3 * abs(grown) + 1e-4

    return so


def only(*names: str) -> Any:
    """These losses, and with them the total, are others; the rest are as they were."""

    def so(before: dict[str, float], after: dict[str, float]) -> bool:
        changed = {name for name in before if differ(before[name], after[name])}
        return changed - {"grad_norm"} == {*names, "loss"}

    return so


def without_norm(r: Rehearsal) -> dict[str, float]:
    return {name: value for name, value in losses(r).items() if name != "grad_norm"}


def forwards_of_a_validation(r: Rehearsal) -> tuple[int, dict[str, float]]:
    calls: list[int] = []
    hook = r.backbone.unet.down_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    found = r.loop.validation.run()
    hook.remove()
    return len(calls), found


def assigned(r: Rehearsal) -> Any:
    return [r.step(number).assigned for number in range(2)]


def read_at(r: Rehearsal) -> list[int]:
    """The steps of the log."""
    return [line["step"] for line in r.log if "loss" in line]


def tracked(r: Rehearsal) -> list[str]:
    """Folders of the run in which a tracker has put files."""
    return sorted({file.relative_to(r.loop.root).parts[0] for file in r.loop.root.rglob("*tfevents*")})


def decays(r: Rehearsal) -> list[float]:
    return [group["weight_decay"] for group in r.loop.update.adam.param_groups]


def peak_rates(r: Rehearsal) -> list[float]:
    return [group["peak"] for group in r.loop.update.adam.param_groups]


def averaged(r: Rehearsal) -> float:
    """How far what would be kept is from what it began with, as a share of the way that the weights went."""
    step = r.step()
    name = next(name for name in step.kept if (step.weights[name] - r.begun[name]).norm() > 1e-6)
    return float((step.kept[name] - r.begun[name]).norm() / (step.weights[name] - r.begun[name]).norm())


def endured(r: Rehearsal) -> int:
    """Bad steps in a row until the run ends."""
    r.loop.bad_steps.in_a_row = 0
    for step in range(1, 50):
        try:
            r.loop.bad_steps.update([step], [step])
        except UserError:
            return step
    return 0


def taught_to_read(r: Rehearsal) -> list[str]:
    """What of the encoder of expressions is given a gradient."""
    return [name for name, gradient in r.step().applied.items() if ".encoder." in name and gradient.any()
            and name.split(".encoder.")[0].endswith("text_encoder")]  # fmt: skip


def decayed_by(rate: float) -> Any:
    """The same step, but for that share of the weights as they were before it."""

    def so(before: Any, after: Any) -> bool:
        begun, one = before
        pairs = [(after[1][name] - one[name], -rate * begun[name]) for name in begun]
        return all((found - wanted).norm() <= 0.01 * wanted.norm() for found, wanted in pairs)

    return so


def rates(r: Rehearsal) -> list[float]:
    return [r.loop.settings.learning_rate_at(step) for step in range(10)]


def near(value: float, within: float = 1e-4) -> Any:
    """What is seen is this, and was not before."""
    return lambda before, after: abs(after - value) <= within * abs(value) < abs(before - value)


def becomes(value: Any) -> Any:
    return lambda before, after: after == value != before


def shape(**changes: Any) -> Any:
    """The adapter's configuration changes in this, and what it makes of a batch does too."""

    def so(before: Any, after: Any) -> bool:
        told = all(getattr(after[0], name) == value != getattr(before[0], name) for name, value in changes.items())
        return told and differ(before[1:], after[1:])

    return so


MODEL: Table = {
    "pretrained_model_name_or_path": Effect("{other}", lambda r: (r.backbone.model_hash, losses(r))),
    "revision": Warned("main", "revision 'main' is ignored"),
    "unet_feature": Effect("mid", read, shape(unet_feature="mid")),
    "mixed_precision": Effect("bf16", lambda r: (str(r.backbone.dtype), losses(r)),
                              lambda a, b: b[0] == "torch.bfloat16" != a[0] and differ(a[1], b[1])),
    "adapter_precision": Effect("bf16", losses),
    "gradient_checkpointing": Effect("", lambda r: (r.step().read, without_norm(r)),
                                     lambda a, b: b[0] == 2 * a[0] and a[1] == b[1]),
    "enable_xformers_memory_efficient_attention": Warned("", "xformers runs on GPUs only"),
    "allow_tf32": Warned("", "--allow_tf32 has no effect: a CPU does not round float32"),
    "compile": Effect("", lambda r: compiled_blocks(r.backbone.unet), lambda a, b: b > a == 0),
    "channels_last": Effect("", laid_out_channels_last, lambda a, b: b and not a),
}  # fmt: skip

DATA: Table = {
    "data_root": Effect("{sample}", lambda r: (ids(r), held_out(r))),
    "dataset_name": Effect("refcoco", ids, beside="--data_root {wide}"),
    "dataset_name_matching": Refused("others", "invalid choice"),
    "combine_datasets_val": Effect("refcocog", held_out, lambda a, b: set(a) - set(b) == {"refcoco", "refcoco+"},
                                   beside=FILES),
    "dataset_name_val": Effect("refcocog", held_out, lambda a, b: set(a) - set(b) == {"refcoco", "refcoco+"},
                               beside=FILES),
    "val_fullset": Effect("", held_out, lambda a, b: a.keys() == b.keys() and all(b[one] > a[one] for one in a),
                          beside=FILES),
    "scenes": Effect("full", shown, all_differ),
    "validation_scenes": Effect("5", held_out, lambda a, b: b == {"scenes": 5} != a),
    "resolution": Effect("32", lambda r: tuple(r.step().batch.images.shape[2:]), becomes((32, 32))),
    "center_crop": Effect("", lambda r: shown(r)[::2], all_differ, beside="--data_root {wide}"),
    "random_flip": Effect("", shown, all_differ),
    "cache": Proven("tests.cli.test_cache", "test_training_uses_it_and_computes_the_same"),
    "corrupt_budget": Effect("1", gone_through, lambda a, b: not a and b, beside="--data_root {broken}"),
    "train_batch_size": Effect("3", lambda r: len(r.step().batch), becomes(3)),
    "val_batch_size": Effect("1", forwards_of_a_validation, lambda a, b: b[0] == 3 * a[0],
                             beside="--validation_scenes 3"),
    "dataloader_num_workers": Effect("1", lambda r: r.step().workers, becomes(1)),
}  # fmt: skip

ADAPTER: Table = {
    "qformer_ckpt": Effect("{first}", lambda r: r.begun),
    "text_encoder_type": Effect("{roberta}", lambda r: (type(r.task.discriminative.phrases).__name__, losses(r)),
                                lambda a, b: b[0] == "EncoderPhrases" != a[0] and differ(a[1], b[1])),
    "no_freeze_text_encoder": Effect("", taught_to_read,
                                     lambda a, b: not a and len(b) > 5, beside="--text_encoder_type {roberta}"),
    "position_embedding": Effect("learned", read, shape(position_embedding="learned")),
    "code_placement": Effect("sequence", read, shape(code_placement="sequence")),
    "enc_layers": Effect("2", read, shape(enc_layers=2)),
    "dec_layers": Effect("2", read, shape(dec_layers=2)),
    "dim_feedforward": Effect("24", read, shape(dim_feedforward=24)),
    "hidden_dim": Effect("8", read, shape(hidden_dim=8)),
    "nheads": Effect("4", read, shape(nheads=4)),
    "dropout": Effect("0.7", lambda r: losses(r)["loss"]),
    "num_queries_matching": Effect("2", read, shape(num_queries_matching=2)),
    "num_queries_rec": Effect("4", read, shape(num_queries_rec=4)),
    "pre_norm": Effect("", read, shape(pre_norm=True)),
    "no_contrastive_align_loss": Effect("", losses, lambda a, b: a.keys() - b.keys() == {"align"}),
    "contrastive_loss_hdim": Effect("8", read, shape(contrastive_loss_hdim=8)),
}  # fmt: skip

OBJECTIVE: Table = {
    "fix_timestep": Effect("7", lambda r: r.step().t.tolist(), becomes([7, 7])),
    "noise_offset": Effect("0.5", lambda r: r.step().noise,
                           lambda a, b: (b - a).abs().mean() > 0.1 and (b - a).flatten(2).std(dim=2).max() < 1e-5),
    "i2t_loss_coef": Effect("3", losses, weighs("i2t", 2)),
    "t2i_loss_coef": Effect("3", losses, weighs("t2i", 2)),
    "ce_loss_coef": Effect("3", losses, weighs("ce", 2)),
    "bbox_loss_coef": Effect("7", losses, weighs("bbox", 2)),
    "giou_loss_coef": Effect("4", losses, weighs("giou", 2)),
    "contrastive_align_loss_coef": Effect("3", losses, weighs("align", 2)),
    "eos_coef": Effect("0.5", losses, only("ce")),
    "temperature_NCE": Effect("0.7", losses, only("align")),
    "set_loss": Refused("sequential", "invalid choice"),
    "set_cost_class": Effect("1e4", assigned, beside=SEVERAL),
    "set_cost_bbox": Effect("1e4", assigned, beside=SEVERAL),
    "set_cost_giou": Effect("1e4", assigned, beside=SEVERAL),
    "no_detection": Effect("", lambda r: set(r.validation), lambda a, b: a - b == {"rec_p1"}),
}  # fmt: skip

OPTIMISATION: Table = {
    "seed": Effect("2", lambda r: (ids(r), r.step().noise, r.step().t, r.begun), all_differ),
    "num_train_epochs": Effect("3", lambda r: (r.loop.settings.max_train_steps, len(r.loop.stream)),
                               lambda a, b: b[0] == -(-3 * b[1] // 2) != a[0], beside="--max_train_steps None"),
    "max_train_steps": Effect("3", lambda r: r.log[-1]["step"], becomes(3), whole=True),
    "gradient_accumulation_steps": Effect("2", lambda r: (r.step().micro_batches, r.loop.plan.global_batch),
                                          becomes((2, 4))),
    "learning_rate": Effect("1e-2", lambda r: r.step().rate, near(1e-2)),
    "scale_lr": Effect("", lambda r: r.step().rate, near(2e-4)),
    "lr_scheduler": Effect("linear", lambda r: rates(r)[9], near(1e-5), beside="--max_train_steps 10"),
    "lr_warmup_steps": Effect("4", lambda r: rates(r)[:5],
                              lambda a, b: b == approx([0, 2.5e-5, 5e-5, 7.5e-5, 1e-4]) != a,
                              beside="--max_train_steps 10"),
    "adam_beta1": Effect("0.5", lambda r: r.step(1).weights),
    "adam_beta2": Effect("0.5", lambda r: r.step(1).weights),
    "adam_epsilon": Effect("1e-2", lambda r: r.step().weights),
    "adam_weight_decay": Effect("0.51", lambda r: (r.begun, r.step().weights), decayed_by(1e-2 * 0.5),
                                beside="--learning_rate 1e-2"),
    "ema_decay": Effect("0.05", averaged, near(0.95, 0.01)),
    "weight_decay_on": Effect("matrices", decays, becomes([0.01, 0.0])),
    "text_encoder_lr": Effect("3e-3", peak_rates, becomes([1e-4, 3e-3]),
                              beside="--text_encoder_type {roberta} --no_freeze_text_encoder"),
    "use_8bit_adam": Refused("", "--use_8bit_adam runs on CUDA devices only"),
    "max_grad_norm": Effect("0.01", lambda r: r.step().applied_norm, near(0.01, 1e-3)),
    "max_bad_steps": Effect("5", endured, becomes(5)),
}  # fmt: skip

STEPWISE = "--checkpointing_steps 1"
OUTPUT: Table = {
    "output_dir": Effect("{elsewhere}", lambda r: r.loop.root.parts,
                         lambda a, b: b[-1] == "elsewhere" != a[-1]),
    "run_name": Effect("mine", lambda r: r.loop.root.name, becomes("mine")),
    "checkpointing_steps": Effect("1", lambda r: folders(r.loop.root), becomes(["checkpoint-1", "checkpoint-2"]),
                                  whole=True),
    "checkpoints_total_limit": Effect("1", lambda r: folders(r.loop.root), becomes(["checkpoint-2"]), beside=STEPWISE,
                                      whole=True),
    "resume_from_checkpoint": Effect("{half}", read_at,
                                     becomes([2]), whole=True),
    "reset_optimizer": Effect("", lambda r: int(next(iter(r.loop.update.adam.state.values()))["step"]), becomes(1),
                              beside="--resume_from_checkpoint {half}", whole=True),
    "validation_steps": Effect("1", lambda r: [line["step"] for line in r.log if "validation" in line],
                               becomes([1, 2]), whole=True),
    "logging_steps": Effect("2", read_at, becomes([2]), whole=True),
    "report_to": Effect("tensorboard", tracked, lambda a, b: bool(b) and not a, whole=True),
    "logging_dir": Effect("somewhere", tracked, lambda a, b: set(b) == {"somewhere"} != set(a), whole=True,
                          beside="--report_to tensorboard"),
}  # fmt: skip

HUB: Table = {
    "push_to_hub": Proven("tests.cli.test_hub", "test_what_a_run_leaves_is_uploaded"),
    "hub_token": Proven("tests.cli.test_hub", "test_what_a_run_leaves_is_uploaded"),
    "hub_model_id": Proven("tests.cli.test_hub", "test_the_token_of_who_has_logged_in"),
}

NEVER = "was never read by the published code"
WITH_NOTHING = ("hard_neg", "relativistic", "unhinged", "neg_img", "mixed_neg", "transformer_decoder_only")
WITH_A_WORD = ("dataset_config_name", "dataset_script", "image_column", "caption_column", "cache_dir", "neg_prob",
               "validation_epochs")  # fmt: skip
REFUSED: Table = {
    **{name: Refused("", f"--{name} {NEVER}") for name in WITH_NOTHING},
    **{name: Refused("1", f"--{name} {NEVER}") for name in WITH_A_WORD},
    "mend_loss_coef": Refused("1", "--mend_loss_coef was removed"),
    "masks": Refused("", "--masks asks for segmentation"),
    "img_root": Refused("x", "--img_root was overwritten before it was read"),
    "max_train_samples": Refused("1", "--max_train_samples was never read"),
    "local_rank": Warned("0", "--local_rank is not read"),
}

COMMON: Table = {**MODEL, **DATA, **ADAPTER, **OBJECTIVE, **OPTIMISATION, **OUTPUT, **HUB, **REFUSED}
