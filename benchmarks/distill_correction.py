"""Teach a LoRA what the self-corrected sampler predicts, so that correction needs no adapter and no extra passes.

    python benchmarks/distill_correction.py --data_root runs/mmdit/scenes --out runs/distilled-correction
    dpt bench run dpt mine=runs/distilled-correction --pretrained_model_name_or_path ckpt/pocket-mmdit

The teacher is a tuned model with its adapter. Its correction moves the next latents; divided by the step of Euler's
method, that is a change of the guided prediction. The student is the same LoRA, trained until its guided prediction
is the changed one. Rectified flow only. The first half of the trajectories are the teacher's, the others the
student's own.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition, open_backbone
from dpt.backbone.rng import generator_for
from dpt.checkpoints import open_checkpoint
from dpt.cli.common.console import parse_options
from dpt.cli.train.data import framing_of, open_cache, open_data
from dpt.cli.train.options import DataOptions
from dpt.embedded import model_location
from dpt.errors import fail
from dpt.lora import Lora
from dpt.sampling.guidance import StepInfo, classifier_free
from dpt.sampling.options import Correction, Guidance, Interval
from dpt.sampling.schedulers import make_scheduler, set_steps
from dpt.sampling.self_correction import SelfCorrection
from dpt.score.matching import Scorer
from dpt.training.tasks.denoising import export_lora


@dataclass(frozen=True)
class Options:
    model: str = "ckpt/pocket-mmdit"
    checkpoint: Path = Path("ckpt/pocket-mmdit-dpt")
    data_root: Path | None = None
    """Its captions are sampled. Default: captions of scenes rendered on the fly."""
    out: Path = Path("outputs/distilled-correction")
    factor: float = 0.02
    end: float = 0.6
    """The correction ends here: 0 is pure noise, 1 the image."""
    trajectories: int = 60
    """Batches of captions that are sampled; as many training steps as sampling steps for each."""
    num_timesteps: int = 20
    batch: int = 16
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """What the student should predict at one step, for a batch of captions."""

    x: Tensor
    t: Tensor
    guided: Tensor
    shift: Tensor
    """What the correction adds to `guided`."""


class Distillation:
    def __init__(self, options: Options) -> None:
        self.options = options
        location = model_location(options.model)
        teacher, self.scorer, merged = self._open(location)
        self.guidance = Guidance(teacher.generation_defaults.guidance_scale)
        merged.merge()
        self.teacher, (self.student, _, self.lora) = teacher, self._open(location)
        self.scheduler = make_scheduler("euler", teacher.scheduler_config)
        if not hasattr(self.scheduler, "sigmas") or "FlowMatch" not in type(self.scheduler).__name__:
            fail(f"{options.model} is not a model of rectified flow")
        interval = Interval(0.0, options.end)
        self.correction = Correction(options.factor, "fused", "rms", interval)

    def _open(self, location: str) -> tuple[Backbone, Scorer, Lora]:
        backbone = open_backbone(location, dtype="bfloat16")
        checkpoint = open_checkpoint(self.options.checkpoint)
        lora = checkpoint.attach(backbone)
        if checkpoint.adapter is None or lora is None:
            fail(f"{self.options.checkpoint} has no adapter or no LoRA")
        return backbone, Scorer(backbone, checkpoint.adapter), lora

    def train(self, captions: list[str]) -> None:
        options = self.options
        parameters = list(self.lora.weights.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
        steps = options.trajectories * options.num_timesteps
        choose = random.Random(options.seed)
        step = 0
        for number in range(options.trajectories):
            chosen = choose.sample(captions, options.batch)
            text, negative = self._texts(chosen)
            by_student = number >= options.trajectories // 2
            targets = list(self._targets(number, text, negative, by_student))
            remaining = moved = 0.0
            # One row of each step in a batch: steps of one kind alone would pull the weights to and fro.
            for batch in range(options.num_timesteps):
                rows = torch.arange(options.batch) + batch
                picked = [targets[int(row) % len(targets)] for row in rows]
                own = Target(*(_pick(picked, name) for name in ("x", "t", "guided", "shift")))
                error = self._predict(self.student, own.x, own.t, text, negative) - own.guided - own.shift
                loss = error.square().mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.param_groups[0]["lr"] = options.learning_rate * min(1, (step + 1) / 20) * (1 - step / steps)
                optimizer.step()
                remaining, moved, step = remaining + loss.item(), moved + own.shift.square().mean().item(), step + 1
            print(f"{step} of {steps} steps: {remaining / moved:.3f} of the correction is left", flush=True)

    def _texts(self, captions: list[str]) -> tuple[Condition, Condition]:
        with torch.no_grad():
            return self.teacher.encode_text(captions), self.teacher.encode_text([""] * len(captions))

    def _targets(self, number: int, text: Condition, negative: Condition, by_student: bool) -> Iterator[Target]:
        """Each sampling step's input, the teacher's guided prediction there, and the correction of it."""
        options, scheduler = self.options, self.scheduler
        correct = SelfCorrection(self.teacher, text, negative, self.guidance, self.correction, self.scorer)
        shape = (self.teacher.latent_channels, *self.teacher.default_latent_size)
        noise = [
            torch.randn(shape, generator=generator_for(options.seed, number, f"noise {n}")) for n in range(len(text))
        ]
        x = torch.stack(noise)
        set_steps(scheduler, options.num_timesteps, latent_size=shape[1:])
        for index, t in enumerate(scheduler.timesteps):
            correct.before(x, StepInfo(index, len(scheduler.timesteps), t, x.new_ones(1), True))
            with torch.no_grad():
                guided = correct(x, t)
            distance = scheduler.sigmas[index + 1] - scheduler.sigmas[index]
            shift = torch.zeros_like(x) if correct.shift is None else correct.shift / distance
            correct.shift = None
            yield Target(x, t.expand(len(x)), guided, shift)
            with torch.no_grad():
                step = self._predict(self.student, x, t, text, negative) if by_student else guided + shift
            x = x + distance * step

    def _predict(self, backbone: Backbone, x: Tensor, t: Tensor, text: Condition, negative: Condition) -> Tensor:
        t = torch.cat([t, t]) if t.ndim else t
        denoiser = classifier_free(backbone.predict, text, negative, self.guidance.scale)
        return denoiser(x, t).float()


def _pick(targets: list[Target], name: str) -> Tensor:
    """Row i of the i-th target."""
    return torch.stack([getattr(target, name)[row] for row, target in enumerate(targets)])


def main(options: Options) -> None:
    distillation = Distillation(options)
    data = DataOptions(data_root=options.data_root)
    framing = framing_of(data.framing, distillation.teacher)
    source, _ = open_data(data, framing, options.seed, open_cache(data, framing, distillation.teacher))
    captions = sorted({caption for caption in source.captions()})
    print(f"{len(captions)} captions", flush=True)
    distillation.train(captions)
    print(export_lora(distillation.student, distillation.lora, options.out, options.model))


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "distill_correction.py"))
