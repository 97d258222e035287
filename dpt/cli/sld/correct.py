"""`dpt sld correct`, `dpt sld edit`, and `dpt sld demo` on the files of the published demo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.cli.common.console import plain_warnings, warn
from dpt.cli.sld.options import SLDModelOptions, inputs_of, is_done, read_picture, with_strength
from dpt.errors import UserError, fail
from dpt.methods.sld.settings import EngineSettings, LoopSettings

if TYPE_CHECKING:
    from dpt.detect.base import Image
    from dpt.methods.sld.loop import LoopResult
    from dpt.methods.sld.method import Corrector
    from dpt.methods.sld.planner import Planner
    from dpt.methods.sld.record import DemoEntry


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class CorrectOptions:
    """Repair images that do not show what their prompt says: detect, plan, edit the latents, repeat.

    Writes a folder per image with each round's image, its plan in words and drawn, and report.json. The best round
    is the result; it is never worse than the start. Interrupt and repeat at will: finished images are kept.
    """

    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """The images to repair."""
    prompt: str
    """What the images should show."""
    out: Path = Path("outputs/sld")
    max_rounds: int = 3
    strength: float | None = None
    """Noise level from which edits are denoised again; default: 0.6, then 0.4 and 0.2 in the rounds that follow."""
    redraw: bool = False
    """Sample an image that lacks several objects again from other noise, instead of editing it."""
    model: SLDModelOptions = field(default_factory=SLDModelOptions)
    engine: Annotated[EngineSettings, tyro.conf.Suppress] = field(default_factory=EngineSettings)


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class EditOptions:
    """Edit images by an instruction, such as "move the red circle left" or "replace the cat with a dog".

    The rules know: remove, add, move, swap, replace, make bigger or smaller, turn into a colour.
    """

    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """The images to edit."""
    instruction: str
    out: Path = Path("outputs/sld")
    max_rounds: int = 3
    """Rounds in which a failed edit is tried again, from the start image with another seed."""
    strength: float | None = None
    """Noise level from which edits are denoised again; default: 0.6, then 0.4 and 0.2 in the rounds that follow."""
    model: SLDModelOptions = field(default_factory=SLDModelOptions)
    engine: Annotated[EngineSettings, tyro.conf.Suppress] = field(default_factory=EngineSettings)


Run = Callable[["Corrector", "Image"], "LoopResult"]


def correct(options: CorrectOptions) -> None:
    planner = options.model.planner(options.out)
    if options.model.llm == "rules":
        planner.parse(options.prompt)  # what the rules do not understand ends the command before a model is loaded

    def run(corrector: Corrector, image: Image) -> LoopResult:
        return corrector.correct(image, corrector.planner.parse(options.prompt), options.model.seed, options.redraw)

    _run(options, options.prompt, LoopSettings(options.max_rounds), planner, run)


def edit(options: EditOptions) -> None:
    planner = options.model.planner(options.out)
    if options.model.llm == "rules":
        planner.instruction(options.instruction)

    def run(corrector: Corrector, image: Image) -> LoopResult:
        return corrector.follow(image, corrector.planner.instruction(options.instruction), options.model.seed)

    _run(options, options.instruction, LoopSettings(options.max_rounds, policy="edit"), planner, run)


def _run(options: CorrectOptions | EditOptions, text: str, loop: LoopSettings, planner: Planner, run: Run) -> None:
    from dpt.methods.sld.record import STRIP, write_failure, write_folder

    if not options.pictures:
        fail("give at least one image")
    if folder := next((file for file in options.pictures if file.is_dir()), None):
        fail(f"{folder} is a folder: give the images in it, as {folder}/*.png")
    names = [file.stem for file in options.pictures]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        fail(f"two images are called {repeated}, and would share a folder in --out")
    images = [read_picture(file) for file in options.pictures]
    corrector = options.model.open(options.engine, with_strength(loop, options.strength), planner)
    failed = 0
    with plain_warnings():
        for file, image in zip(options.pictures, images, strict=True):
            folder = options.out / file.stem
            inputs = inputs_of(image, text, options.model.seed, corrector)
            if is_done(folder, inputs):
                print(f"{file}: done before, see {folder / STRIP}")
                continue
            try:
                result = run(corrector, image)
            except UserError as error:
                failed += 1
                write_failure(folder, image, str(error))
                print(f"{file}: unchanged: {error}")
                continue
            write_folder(folder, result, text, inputs)
            print(f"{file}: {summary(result)}; see {folder / STRIP}")
    if failed:
        fail(f"{failed} of {len(images)} images could not be edited and are unchanged in {options.out}")


def summary(result: LoopResult) -> str:
    """The outcome in one line."""
    rounds = len(result.rounds) - 1
    best, fault = result.best, result.best.verdict.first_fault
    fault_text = f"not {fault.text}" if fault else ""
    if best.number == 0:
        if result.status == "right":
            return "already right, unchanged"
        return f"unresolved after {rounds} rounds ({result.ending}), unchanged: {fault_text}"
    done = "; then ".join("; ".join(r.plan) for r in result.rounds[1 : best.number + 1])
    if result.status == "right":
        return f"right after {best.number} round{'s' if best.number > 1 else ''}: {done}"
    return f"better but unresolved after {rounds} rounds ({result.ending}): {done}; still {fault_text}"


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class DemoOptions:
    """Correct or edit the images of a JSON file in the published form, with a published .ini file.

    Writes initial_image.png, det_result_obj.png, intermediate_NAME.png and final_NAME.png per entry. An entry with
    llm_parsed_prompt and llm_layout_suggestions needs no language model.
    """

    json_file: Path
    input_dir: Path
    output_dir: Path
    mode: Literal["self_correction", "image_editing"] = "self_correction"
    config: Path | None = None
    """The .ini file; default: the built-in settings."""
    model: SLDModelOptions = field(default_factory=SLDModelOptions)


def demo(options: DemoOptions) -> None:
    from dpt.methods.sld.record import DemoConfig, read_config, read_entries

    config = DemoConfig() if options.config is None else read_config(options.config)
    for sentence in config.warnings:
        warn(sentence)
    entries = read_entries(options.json_file)
    pictures = [_picture(options.input_dir, entry.input_fname) for entry in entries]
    model = options.model
    if model.llm == "openai" and not model.llm_model:
        model = replace(model, llm_model=config.llm_model)
    planner = model.planner(options.output_dir, config.key)
    corrector = model.open(config.engine, config.loop, planner)
    failed = 0
    with plain_warnings():
        for entry, file in zip(entries, pictures, strict=True):
            corrector.use_queries(config.queries(entry.generator))
            try:
                result = _run_entry(corrector, entry, file, options, config.seed)
            except UserError as error:
                failed += 1
                print(f"{entry.input_fname}: unchanged: {error}")
                continue
            print(f"{entry.input_fname}: {summary(result)}")
    if failed:
        fail(f"{failed} of {len(entries)} entries of {options.json_file} could not be done")


def _picture(folder: Path, name: str) -> Path:
    """Find the image of a published name, which has no suffix."""
    candidates = [folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES)]
    found = next((file for file in candidates if file.is_file()), None)
    return found or fail(f"there is no picture {name} with one of {', '.join(SUFFIXES)} in {folder}")


def _run_entry(corrector: Corrector, entry: DemoEntry, file: Path, options: DemoOptions, seed: int) -> LoopResult:
    from dpt.claims.layout import layout_of

    image = read_picture(file)
    editing = options.mode == "image_editing"
    if editing and entry.llm_layout_suggestions is None:
        result = corrector.follow(image, corrector.planner.instruction(entry.prompt), seed)
    else:
        parsed = entry.parsed or corrector.planner.parse(entry.prompt)
        detections = corrector.make_loop(redraw=False).detect(image, parsed.nouns)
        goal = entry.goal(layout_of(detections, image.shape[1], image.shape[0]))
        if goal is None:
            result = corrector.correct(image, parsed, seed, redraw=False)
        else:
            result = corrector.reach(image, goal, parsed, seed)
    _write(options.output_dir / entry.output_dir, Path(entry.input_fname).stem, image, result)
    return result


def _write(folder: Path, name: str, image: Any, result: LoopResult) -> None:
    from PIL import Image

    from dpt.methods.sld.record import drawn_layouts

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / "initial_image.png")
    goal = result.rounds[1].goal if len(result.rounds) > 1 else result.rounds[0].layout
    drawn_layouts(image, result.rounds[0].layout, goal).save(folder / "det_result_obj.png")
    if result.best.number:
        Image.fromarray(result.best.image).save(folder / f"intermediate_{name}.png")
    Image.fromarray(result.best.image).save(folder / f"final_{name}.png")
