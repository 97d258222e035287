"""`txt2img.py`: options -> open the model -> sample -> write images, contact sheet and manifest."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from dpt.cli.common.console import (
    new_run_folder,
    parse_options,
    plain_warnings,
    read_prompts,
    warn,
    warn_of_unknown_words,
)
from dpt.cli.txt2img.options import LIMITS, PUBLISHED, Options, check
from dpt.distributed import Processes, own_gpu, processes
from dpt.embedded import EMBEDDED_MODELS, checkpoint_for, model_location
from dpt.errors import fail, run_command
from dpt.files import NumberedFolder

if TYPE_CHECKING:
    from dpt.cli.txt2img.model import TunedModel
    from dpt.cli.txt2img.sampling import ImageRecord, SamplingVariant
    from dpt.sampling.draw import SamplingSettings
    from dpt.sampling.options import Correction


GPU_BATCH = 4

FLAT: Any = tyro.conf.OmitArgPrefixes[Options]


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments

    def command() -> None:
        options: Options = parse_options(FLAT, words, "txt2img.py", PUBLISHED)
        with plain_warnings(), processes() as group:
            run(options, group)

    return run_command(command)


def run(options: Options, group: Processes) -> None:
    check(options)
    prompts = [options.prompt] if options.prompts_file is None else read_prompts(options.prompts_file)
    if len(prompts) * options.num_candidates > LIMITS["n_samples"]:
        fail(f"{len(prompts)} prompts with {options.num_candidates} images each are more than {LIMITS['n_samples']}")
    if options.method is not None:
        from dpt.cli.txt2img.model import check_method, run_method

        check_method(options)
        run_method(options, prompts, group)
        return
    # The checks above are fast; torch is imported from here on.
    from dpt.backbone.text import UNKNOWN_WORDS
    from dpt.cli.txt2img.model import check_parts, open_tuned_model
    from dpt.cli.txt2img.sampling import SHEET, variants_for, write_record, write_sheet
    from dpt.sampling.draw import calls_per_picture, intervals_without_a_step

    named = options.model.pretrained_model_name_or_path
    tuned = open_tuned_model(options, model_location(named), choose_device(options.model.gpu), checkpoint_for(named))
    has_adapter = tuned.adapter is not None
    correction = options.correction.correction(options.sampler.num_timesteps, tuned.defaults, has_adapter)
    check_parts(options, tuned, correction)
    applied = tuned.defaults.describe(options.applied_defaults(correction))
    options = options.with_defaults(tuned.defaults)
    settings = settings_of(options, correction)
    calls_per_picture(tuned.backbone, settings)
    tuned.backbone.latent_size(settings.height, settings.width)
    own_prompts = group.share(list(enumerate(prompts)))
    cut = [
        sentence
        for sentences in group.gather(lambda: prompt_warnings(options, tuned, own_prompts))
        for sentence in sentences
    ]
    notes = [*options.unused_flags(has_adapter, correction), *intervals_without_a_step(tuned.backbone, settings)]
    on_cpu = tuned.backbone.device.type == "cpu"
    if on_cpu and (options.batch_size or 1) > 1:
        notes.append("--batch_size has no effect on a CPU, which samples one image at a time")
    if group.is_main:
        # The words that an embedded model does not know are named below, with those that it knows.
        named_below = UNKNOWN_WORDS if named in EMBEDDED_MODELS else ()
        for sentence in (*cut, *notes):
            if not sentence.startswith(named_below):
                warn(sentence)
        warn_of_unknown_words(named, [*prompts, options.guidance.negative_prompt or ""])
        for line in (*applied, describe_correction(options, correction), *tuned.speedups):
            if line:
                print(line)
    batch_size = 1 if on_cpu else options.batch_size or GPU_BATCH
    variants = variants_for(options, settings, tuned)
    name = options.prompt if options.prompts_file is None else options.prompts_file.stem
    with shared_run_folder(group, options.outdir, name) as folder:
        per_process = group.gather(
            lambda: sample_own(folder.work, options, tuned, variants, own_prompts, batch_size, group)
        )
        entries = sorted((entry for entries in per_process for entry in entries), key=lambda entry: entry.prompt)
        if group.is_main:
            if not options.sheet_per_prompt:
                write_sheet(folder.work, SHEET, entries, len(variants), prompts)
            write_record(folder.work, options, tuned, settings, variants, prompts, entries, batch_size, cut)
    if group.is_main:
        sheet = "the contact sheets" if options.sheet_per_prompt else SHEET
        where = "the CPU" if on_cpu else f"GPU {tuned.backbone.device.index}"
        images = f"{len(entries)} image{'' if len(entries) == 1 else 's'}"
        if verdicts := describe_verdicts(entries):
            print(verdicts)
        print(f"{images} sampled on {where}: see {sheet} in {folder.final}")


def describe_verdicts(entries: Sequence[ImageRecord]) -> str | None:
    """Of a comparison whose images were all judged: how many are right by each variant."""
    from dpt.cli.txt2img.sampling import RIGHT

    if not entries or any(entry.verdict is None for entry in entries):
        return None
    right: Counter[str] = Counter()
    for entry in entries:
        right[entry.method] += entry.verdict == RIGHT
    total = len(entries) // len(right)
    return f"right of {total}, from the same noise: {', '.join(f'{name} {count}' for name, count in right.items())}"


def describe_correction(options: Options, correction: Correction) -> str | None:
    """One line about a correction given by its factor: its default target depends on other flags."""
    if not (correction.on and options.correction.correction_factor is not None):
        return None
    published = "" if options.correction.correction_target else ", as in the published code"
    how = f"target {correction.target}{published}, norm {correction.norm}"
    return f"self-correction towards the prompt, factor {correction.factor:g} ({how})"


def settings_of(options: Options, correction: Correction) -> SamplingSettings:
    """The sampler's settings; the generation defaults must have been filled in."""
    from dpt.sampling.draw import SamplingSettings

    assert options.sampler.guidance_scale is not None
    height, width = options.size.sides
    return SamplingSettings(
        steps=options.sampler.num_timesteps,
        guidance_scale=options.sampler.guidance_scale,
        scheduler=options.sampler.scheduler,
        height=height,
        width=width,
        guidance_interval=options.guidance.interval,
        guidance_rescale=options.guidance.guidance_rescale,
        correction=correction,
        true_cfg_scale=options.guidance.true_cfg_scale,
        sizes=options.sizes,
    )


def sample_own(
    folder: Path,
    options: Options,
    tuned: TunedModel,
    variants: Sequence[SamplingVariant],
    own_prompts: Sequence[tuple[int, str]],
    batch_size: int,
    group: Processes,
) -> list[ImageRecord]:
    """Sample this process's prompts and write their images, traces and sheets into the folder."""
    from tqdm import tqdm

    from dpt.cli.txt2img.sampling import SHEET, ImageWriter, write_sheet, write_trace
    from dpt.sampling.draw import calls_per_picture

    calls = sum(calls_per_picture(tuned.backbone, variant.settings) for variant in variants)
    total = calls * options.num_candidates * len(own_prompts)
    entries: list[ImageRecord] = []
    with tqdm(total=total, desc="sampling", unit="step", disable=not group.is_main) as bar:
        writer = ImageWriter(options, tuned, variants, batch_size, folder, bar.update)
        for number, prompt in own_prompts:
            written = writer.write(number, prompt)
            entries += written
            if options.trace:
                write_trace(folder / writer.file_name(number, "trace.png"), tuned, writer.traces, prompt)
            if options.sheet_per_prompt:
                write_sheet(folder, writer.file_name(number, SHEET), written, len(variants), [prompt])
    return entries


@contextmanager
def shared_run_folder(group: Processes, parent: Path, text: str) -> Iterator[NumberedFolder]:
    """One run folder for all processes: the main one creates and names it."""
    with ExitStack() as stack:
        created: list[NumberedFolder] = []

        def create() -> Path:
            created.append(stack.enter_context(new_run_folder(parent, text)))
            return created[0].work

        work = group.from_main(create)
        yield created[0] if created else NumberedFolder(work)


def prompt_warnings(options: Options, tuned: TunedModel, own_prompts: Sequence[tuple[int, str]]) -> list[str]:
    """Warnings about truncated or unknown words in this process's prompts and the negative prompt."""
    numbered = options.prompts_file is not None
    sentences = [
        f"prompt {number}: {sentence}" if numbered else sentence
        for number, prompt in own_prompts
        for sentence in tuned.backbone.prompt_warnings(prompt)
    ]
    prompts = [prompt for _, prompt in own_prompts]
    negative = options.guidance.negative_prompt or ""
    if negative in prompts or not any(number == 0 for number, _ in own_prompts):
        return sentences
    return [*sentences, *tuned.backbone.prompt_warnings(negative)]


def choose_device(gpu: str | None) -> str:
    """The device for --gpu. A machine without a GPU samples on the CPU; a wrong index on one with GPUs is an error."""
    import torch

    from dpt.backbone.device import resolve_device

    if gpu == "cpu":
        return "cpu"
    if gpu is not None and not gpu.isdecimal():
        fail(f"--gpu takes the index of one GPU or cpu, not {gpu!r}")
    if not torch.cuda.is_available():
        device = resolve_device()
        if gpu is not None and device.type == "cpu":
            warn(f"--gpu {gpu} has no effect: this machine has no GPU that PyTorch can use; sampling on the CPU")
        return str(device)
    return f"cuda:{own_gpu() or 0}" if gpu is None else f"cuda:{gpu}"
