"""`txt2img.py`: pictures for prompts, with a contact sheet and a manifest of how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from dpt.cli.common.console import plain_warnings, warn
from dpt.cli.common.run_folder import new_run_folder, read_prompts
from dpt.cli.txt2img.options import Options, check
from dpt.distributed import Processes, own_gpu, processes
from dpt.embedded import checkpoint_for, model_location
from dpt.errors import UserError, run_command
from dpt.files import NumberedFolder

if TYPE_CHECKING:
    from dpt.cli.txt2img.model import TunedModel
    from dpt.cli.txt2img.sampling import ImageRecord, SamplingVariant
    from dpt.sampling.draw import Settings


GPU_BATCH = 4


def main(arguments: Sequence[str] | None = None) -> int:
    flat = tyro.conf.OmitArgPrefixes[Options]
    options: Options = tyro.cli(flat, prog="txt2img.py", args=arguments, use_underscores=True)

    def command() -> None:
        with plain_warnings(), processes() as group:
            run(options, group)

    return run_command(command)


def run(options: Options, group: Processes) -> None:
    check(options)
    prompts = [options.prompt] if options.prompts_file is None else read_prompts(options.prompts_file)
    # Everything above this line answers at once; from here on, the libraries are loaded.
    from dpt.cli.txt2img.model import open_tuned_model
    from dpt.cli.txt2img.output import SHEET, write_record, write_sheet
    from dpt.cli.txt2img.sampling import methods_for
    from dpt.sampling.draw import calls_per_picture, intervals_without_a_step

    named = options.pretrained_model_name_or_path
    _ = settings_of(options, has_adapter=True)  # what is wrong with them is said before anything is opened
    trained = open_tuned_model(options, model_location(named), choose_device(options.gpu), checkpoint_for(named))
    settings = settings_of(options, trained.adapter is not None)
    calls_per_picture(trained.backbone, settings)
    trained.backbone.latent_size(settings.height, settings.width)
    own = group.share(list(enumerate(prompts)))
    losses = [sentence for each in group.gather(lambda: words_lost(options, trained, own)) for sentence in each]
    notes = [*options.without_effect, *intervals_without_a_step(trained.backbone, settings)]
    if trained.adapter is None:
        notes += [f"--{name} has no effect: there is no adapter" for name in options.correction.given_beside_factor]
    on_cpu = trained.backbone.device.type == "cpu"
    if on_cpu and (options.batch_size or 1) > 1:
        notes.append("--batch_size has no effect on a CPU, where pictures are drawn one by one")
    if group.is_main:
        for sentence in (*losses, *notes):
            warn(sentence)
        for sentence in trained.sped:
            print(sentence)
    batch_size = 1 if on_cpu else options.batch_size or GPU_BATCH
    methods = methods_for(options, settings, trained)
    name = options.prompt if options.prompts_file is None else options.prompts_file.stem
    with shared_run_folder(group, options.outdir, name) as folder:
        everyone = group.gather(lambda: draw_own(folder.work, options, trained, methods, own, batch_size, group))
        entries = sorted((one for each in everyone for one in each), key=lambda one: one.prompt)
        if group.is_main:
            if not options.sheet_for_each:
                write_sheet(folder.work, SHEET, entries, len(methods), prompts)
            write_record(folder.work, options, trained, settings, methods, prompts, entries, batch_size, losses)
    if group.is_main:
        sheet = "the contact sheets" if options.sheet_for_each else SHEET
        where = "the CPU" if on_cpu else f"GPU {trained.backbone.device.index}"
        print(f"{_count(len(entries), 'picture')} drawn on {where}: see {sheet} in {folder.final}")


def settings_of(options: Options, has_adapter: bool) -> Settings:
    from dpt.sampling.draw import Settings

    height, width = options.size
    return Settings(
        steps=options.num_timesteps,
        guidance_scale=options.guidance_scale,
        scheduler=options.scheduler,
        height=height,
        width=width,
        guidance_interval=options.guidance_interval,
        guidance_rescale=options.guidance_rescale,
        correction=options.correction.correction(options.num_timesteps, has_adapter),
    )


def draw_own(
    folder: Path,
    options: Options,
    trained: TunedModel,
    methods: Sequence[SamplingVariant],
    own: Sequence[tuple[int, str]],
    batch_size: int,
    group: Processes,
) -> list[ImageRecord]:
    """This process's prompts: their pictures and what belongs to a single prompt, into the folder."""
    from tqdm import tqdm

    from dpt.cli.txt2img.output import SHEET, write_sheet, write_trace
    from dpt.cli.txt2img.sampling import ImageWriter
    from dpt.sampling.draw import calls_per_picture

    calls = sum(calls_per_picture(trained.backbone, method.settings) for method in methods)
    entries: list[ImageRecord] = []
    with tqdm(total=calls * options.drawn * len(own), desc="drawing", unit="step", disable=not group.is_main) as bar:
        studio = ImageWriter(options, trained, methods, batch_size, folder, bar.update)
        for number, prompt in own:
            drawn = studio.draw(number, prompt)
            entries += drawn
            if options.trace:
                write_trace(folder / studio.name(number, "trace.png"), trained, studio.traces, prompt)
            if options.sheet_for_each:
                write_sheet(folder, studio.name(number, SHEET), drawn, len(methods), [prompt])
    return entries


@contextmanager
def shared_run_folder(group: Processes, parent: Path, text: str) -> Iterator[NumberedFolder]:
    """One for all processes; the main one opens it and gives it its name."""
    with ExitStack() as stack:
        opened: list[NumberedFolder] = []

        def open_it() -> Path:
            opened.append(stack.enter_context(new_run_folder(parent, text)))
            return opened[0].work

        work = group.from_main(open_it)
        yield opened[0] if opened else NumberedFolder(work)


def words_lost(options: Options, trained: TunedModel, own: Sequence[tuple[int, str]]) -> list[str]:
    """What the model will not see of its prompts."""
    numbered = options.prompts_file is not None
    found = [
        f"prompt {number}: {sentence}" if numbered else sentence
        for number, prompt in own
        for sentence in trained.backbone.prompt_warnings(prompt)
    ]
    said = [prompt for _, prompt in own]
    if options.negative_prompt in said or not any(number == 0 for number, _ in own):
        return found
    return [*found, *trained.backbone.prompt_warnings(options.negative_prompt)]


def choose_device(gpu: str | None) -> str:
    """The device for --gpu. Only the default falls back to the CPU; a choice is taken at its word."""
    import torch

    if gpu == "cpu":
        return "cpu"
    if gpu is None:
        return f"cuda:{own_gpu() or 0}" if torch.cuda.is_available() else "cpu"
    if not gpu.isdecimal():
        raise UserError(f"--gpu takes the number of one GPU or cpu, not {gpu!r}")
    return f"cuda:{gpu}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
