"""What is claimed of the flags of `txt2img.py`."""

from __future__ import annotations

from typing import Any

from tests.cli.options.checks import Effect, Proven, Refused, Table, Warned
from tests.cli.options.drawing import Drawing


def pictures(d: Drawing) -> list[str]:
    return d.pictures


def numbers(d: Drawing) -> list[int]:
    """Which of the candidates were kept, in their order."""
    return [one["index"] for one in d.record["images"]]


def all_differ(before: list[str], after: list[str]) -> bool:
    return len(before) == len(after) and not set(before) & set(after)


def becomes(value: Any) -> Any:
    return lambda before, after: after == value != before


CORRECTED = "--ckpt {result} --correction_factor 3 --correction_norm unit"
PUBLISHED = "--ckpt {published} --correction_factor 3 --correction_norm unit"
FOUR_STEPS = f"{CORRECTED} --num_timesteps 4"

DRAWING: Table = {
    "prompt": Effect('"two green stars"', pictures, all_differ),
    "prompts_file": Effect("{prompts}", lambda d: d.record.get("prompts"), becomes(["a star", "two circles"])),
    "n_samples": Effect("2", lambda d: d.pictures, lambda a, b: len(b) == 2 and b[:1] == a),
    "n_candidates": Effect("3", lambda d: (numbers(d), d.record["images"][0].get("score")),
                           lambda a, b: a == ([0], None) and len(b[0]) == 1 and b[1] is not None, beside=CORRECTED),
    "seed": Effect("7", pictures, all_differ),
    "negative_prompt": Effect('"a star"', pictures, all_differ),
    "num_timesteps": Effect("3", lambda d: (d.pictures, d.record["settings"]["steps"]),
                            lambda a, b: all_differ(a[0], b[0]) and b[1] == 3 != a[1]),
    "guidance_scale": Effect("2", pictures, all_differ),
    "guidance_start": Effect("0.5", pictures, all_differ),
    "guidance_end": Effect("0.5", pictures, all_differ),
    "guidance_rescale": Effect("0.5", pictures, all_differ),
    "scheduler": Effect("euler_a", pictures, all_differ),
    "height": Effect("32", lambda d: d.size, becomes((64, 32))),
    "width": Effect("32", lambda d: d.size, becomes((32, 64))),
    "resolution": Effect("32", lambda d: d.size, becomes((32, 32))),
    "batch_size": Warned("2", "--batch_size has no effect on a CPU"),
    "compare": Effect("", lambda d: [one.get("method") for one in d.record["images"]],
                      becomes(["base", "tuned", "tuned and corrected"]), beside=CORRECTED),
    "trace": Effect("", lambda d: (d.names, d.pictures),
                    lambda a, b: set(b[0]) - set(a[0]) == {"trace.png"} and a[1] == b[1], beside=CORRECTED),
    "outdir": Effect("{elsewhere}", lambda d: d.folder.parent.name, becomes("elsewhere")),
    "pretrained_model_name_or_path": Effect("{other}", pictures, all_differ),
    "revision": Warned("main", "revision 'main' is ignored"),
    "ckpt": Effect("{result}", pictures, all_differ),
    "dtype": Effect("bfloat16", lambda d: (d.pictures, d.record["dtype"]),
                    lambda a, b: all_differ(a[0], b[0]) and b[1] == "bfloat16" != a[1]),
    "compile": Proven("tests.cli.test_txt2img_speed", "test_compiled_and_laid_out_otherwise_it_draws_the_same"),
    "channels_last": Effect("", lambda d: len(d.record["changed_for_speed"]), becomes(1)),
    "allow_tf32": Warned("", "--allow_tf32 has no effect: a CPU does not round float32"),
    "gpu": Refused("99", "there is no device cuda:99: this machine has"),
}  # fmt: skip

CORRECTION: Table = {
    "correction_factor": Effect("6", pictures, all_differ, beside="--ckpt {result} --correction_norm unit"),
    "correction_target": Effect("input", pictures, all_differ, beside=CORRECTED),
    "correction_norm": Effect("unit", pictures, all_differ, beside="--ckpt {result} --correction_factor 3"),
    "correction_start": Effect("0.5", pictures, all_differ, beside=FOUR_STEPS),
    "correction_end": Effect("0.5", pictures, all_differ, beside=FOUR_STEPS),
    "correction_every": Effect("2", pictures, all_differ, beside=FOUR_STEPS),
}

UNLIKE = "is not of the shape that --{name} says"
SHAPE: Table = {
    "unet_feature": Effect("mid", pictures, all_differ, beside=PUBLISHED),
    "num_queries_matching": Effect("7", pictures, all_differ, beside=PUBLISHED),
    "nheads": Effect("4", pictures, all_differ, beside=PUBLISHED),
    **{
        name: Refused(f"{words} --ckpt {{result}}", UNLIKE.format(name=name))
        for name, words in {
            "num_queries_rec": "4",
            "position_embedding": "learned",
            "enc_layers": "2",
            "dec_layers": "2",
            "dim_feedforward": "24",
            "hidden_dim": "32",
            "pre_norm": "",
            "no_contrastive_align_loss": "",
            "contrastive_loss_hdim": "8",
        }.items()
    },
}

IDLE: Table = {
    "dropout": Warned("0.1", "--dropout has no effect: nothing is dropped"),
    "text_encoder_type": Warned("roberta-base", "--text_encoder_type has no effect"),
    "no_freeze_text_encoder": Warned("", "--no_freeze_text_encoder has no effect"),
    "fix_timestep": Warned("5", "--fix_timestep has no effect"),
    "masks": Warned("", "--masks has no effect"),
    "no_detection": Warned("", "--no_detection has no effect"),
}

SAMPLER: Table = {**DRAWING, **CORRECTION, **SHAPE, **IDLE}
