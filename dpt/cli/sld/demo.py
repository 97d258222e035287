"""`dpt sld demo`: reads the files of the published demo, and writes its output names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from dpt.cli.common.console import plain_warnings, warn
from dpt.cli.sld.correct import summary
from dpt.cli.sld.options import SLDModelOptions, read_picture
from dpt.errors import UserError, fail

if TYPE_CHECKING:
    from dpt.methods.sld.loop import LoopResult
    from dpt.methods.sld.method import Corrector
    from dpt.methods.sld.published import DemoEntry

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
    from dpt.methods.sld.published import DemoConfig, read_config, read_entries

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
                result = _run(corrector, entry, file, options, config.seed)
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


def _run(corrector: Corrector, entry: DemoEntry, file: Path, options: DemoOptions, seed: int) -> LoopResult:
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
