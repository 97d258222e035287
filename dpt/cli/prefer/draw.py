"""`dpt prefer draw` and `dpt prefer synthesize`: sample candidates for each prompt, and choose by a known taste."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.cli.common.console import read_prompts
from dpt.distributed import Processes, processes, take_own_gpu
from dpt.errors import fail
from dpt.methods.base import GenerationConfig
from dpt.pocket.taste import Taste

if TYPE_CHECKING:
    from dpt.claims.facts import Prompt
    from dpt.methods.candidates import CandidateRequest

PICTURES = "preference_images"

PROMPTS_PER_USER = 10
"""Prompts that one synthetic user judges; a twentieth of the prompts, if there are fewer than 200."""

SEED_OFFSET = 1000
"""Added to --seed, since the benchmark draws its prompts from small seeds."""


@dataclass(frozen=True)
class DrawingOptions:
    """The model and the sampling settings."""

    ckpt: Annotated[Path | None, tyro.conf.arg(metavar="PATH", aliases=["--unet_weight"])] = None
    """Sample with this LoRA. Default: the model alone."""
    n_samples: int = 4
    """Images per prompt."""
    guidance_scales: tuple[float, ...] = ()
    """These take turns over the images of a prompt, so that candidates differ more. Default: --guidance_scale."""
    seed: int = 0
    generation: GenerationConfig = field(default_factory=GenerationConfig)


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class DrawOptions:
    """Sample several images for each prompt into a folder with metadata.jsonl. The same command resumes.

    They are candidates for `dpt prefer score` and `select`, or with --type regularization images that keep a tuned
    model close to the base model. Launched processes share the work.
    """

    prompts: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """One prompt a line, a .jsonl file with a "prompt" key, or a .json list of texts."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER", aliases=["--folder"])]
    type: Literal["", "regularization"] = ""
    """Written to every row of metadata.jsonl."""
    negative_prompt: str | None = None
    """Default: the checkpoint's or the model's own."""
    drawing: DrawingOptions = field(default_factory=DrawingOptions)


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class SynthesizeOptions:
    """Make preference data for the embedded model: sample scene prompts and choose among the images by a known taste.

    Writes preference_images/, preference_train.json and preference_test.json in the published format, taste.json, and
    the prompts.
    """

    out: Path
    prompts: int = 400
    """Prompts in all."""
    choose_from: int | None = None
    """Images that one choice is among; divides --n_samples. Default: all images of a prompt."""
    test_fraction: float = 0.2
    """Fraction of the choices in preference_test.json; no user and no prompt is in both files."""
    categories: tuple[str, ...] = ("single", "binding", "count", "spatial")
    """Categories of scene prompts, as equal in number as the supply of different prompts allows."""
    taste: Taste = field(default_factory=Taste)
    drawing: DrawingOptions = field(default_factory=DrawingOptions)

    @property
    def group_size(self) -> int:
        return self.drawing.n_samples if self.choose_from is None else self.choose_from


def draw(options: DrawOptions) -> None:
    check(options.drawing)
    prompts = read_prompt_file(options.prompts)
    with processes() as group:
        requests = draw_into(options.out, prompts, options.drawing, group, options.negative_prompt)
        if group.is_main:
            from dpt.methods.candidates import write_metadata

            write_metadata(options.out, requests, options.type)
            print(f"{len(requests)} images for {len(prompts)} prompts are in {options.out}")


def read_prompt_file(file: Path) -> list[str]:
    """Read prompts as `read_prompts` does, or from a JSON list of texts, as published."""
    if file.suffix != ".json":
        return read_prompts(file)
    from dpt.untrusted import read_json

    content = read_json(file)
    if not isinstance(content, list) or not all(isinstance(text, str) and text.strip() for text in content):
        fail(f"{file} should be a list of prompts")
    return content or fail(f"{file} holds no prompt")


def check(options: DrawingOptions) -> None:
    for name, value in (("n_samples", options.n_samples), ("num_timesteps", options.generation.sampler.num_timesteps)):
        if value < 1:
            fail(f"--{name} must be at least 1, not {value}")
    scales = options.guidance_scales
    if bad := [scale for scale in scales if not isfinite(scale) or scale < 0]:
        fail(f"--guidance_scales are numbers from 0 up, not {bad[0]:g}")
    if len(scales) > options.n_samples:
        fail(f"--guidance_scales are {len(scales)}, more than --n_samples, {options.n_samples}")
    if scales and options.generation.sampler.guidance_scale is not None:
        fail("--guidance_scales and --guidance_scale: give one of them")


def draw_into(
    folder: Path, prompts: Sequence[str], options: DrawingOptions, group: Processes, negative_prompt: str | None = None
) -> list[CandidateRequest]:
    from tqdm import tqdm

    from dpt.methods.base import BASE, DiffusionConfig
    from dpt.methods.candidates import candidate_requests, draw_candidates

    take_own_gpu()
    generation = options.generation.with_defaults(options.ckpt)
    negative = generation.defaults(options.ckpt).negative_prompt if negative_prompt is None else negative_prompt
    name = BASE if options.ckpt is None else "tuned"
    config = DiffusionConfig(name, options.ckpt, negative_prompt="")  # the requests have it
    method = config.open(generation)
    requests = candidate_requests(prompts, options.n_samples, options.guidance_scales)
    with tqdm(total=len(requests), desc="sampling", unit="image", disable=not group.is_main) as bar:
        draw_candidates(method, requests, options.seed, folder, negative, group, bar.update)
    return requests


def synthesize(options: SynthesizeOptions) -> None:
    check(options.drawing)
    if options.drawing.n_samples < 2:
        fail(f"--n_samples must be at least 2 to choose from, not {options.drawing.n_samples}")
    if options.group_size < 2 or options.drawing.n_samples % options.group_size:
        fail(f"--choose_from must be at least 2 and divide --n_samples, {options.drawing.n_samples}")
    if not 0 < options.test_fraction < 1:
        fail(f"--test_fraction is between 0 and 1, not {options.test_fraction}")
    from dpt.methods.candidates import write_metadata

    prompts = scene_prompts(options)
    with processes() as group:
        requests = draw_into(options.out / PICTURES, [prompt.text for prompt in prompts], options.drawing, group)
        if group.is_main:
            write_metadata(options.out / PICTURES, requests)
            write_preferences(options, prompts, requests)


def scene_prompts(options: SynthesizeOptions) -> list[Prompt]:
    """Different prompts of the pocket suite from a seed that no benchmark uses, alternating between categories."""
    from itertools import chain

    from dpt.evaluation.suites.pocket import suite

    if options.prompts < 1:
        fail(f"--prompts must be at least 1, not {options.prompts}")
    seed = SEED_OFFSET + options.drawing.seed
    by_category = [suite((category,), options.prompts, seed).prompts for category in options.categories]
    different = list({prompt.text: prompt for prompt in chain.from_iterable(zip(*by_category, strict=True))}.values())
    return different[: options.prompts]


def write_preferences(
    options: SynthesizeOptions, prompts: Sequence[Prompt], requests: Sequence[CandidateRequest]
) -> None:
    """Judge every image, choose, and write the published files and the taste."""
    from dpt.data.images import read_image
    from dpt.data.preference.records import read_preferences, split_records, write_choices
    from dpt.files import atomic_file
    from dpt.keyed_random import KeyedRandom
    from dpt.pocket.taste import choose, probabilities, taste_picture

    per_user = max(1, min(PROMPTS_PER_USER, len(prompts) // 20))
    size = options.group_size
    groups = [requests[start : start + size] for start in range(0, len(requests), size)]
    entries: list[dict[str, Any]] = []
    agreement = 0.0
    for number, group in enumerate(groups):
        prompt_id, names = group[0].prompt_id, [request.file_name for request in group]
        prompt = prompts[prompt_id]
        pictures = [taste_picture(read_image(options.out / PICTURES / name)[0], prompt) for name in names]
        chosen = choose(pictures, options.taste, KeyedRandom("choice", options.drawing.seed, number))
        agreement += max(probabilities(pictures, options.taste)) / len(groups)
        user = f"{KeyedRandom('user', options.drawing.seed, prompt_id // per_user).randrange(16**8):08x}"
        entries.append({
            "id": number, "prompt": prompt.text, "human_preference": chosen, "file_path": names, "user_hash": user,
            "contain_name": False,
        })  # fmt: skip
    (options.out / "prompts.txt").write_text("".join(f"{prompt.text}\n" for prompt in prompts))
    everything = options.out / "preferences.json"
    write_choices(everything, entries)
    split = split_records(read_preferences(everything), options.test_fraction, options.drawing.seed)
    for part, records in (("train", split.train), ("test", split.test)):
        write_choices(options.out / f"preference_{part}.json", [entries[int(record.id)] for record in records])
    everything.unlink()
    stated = {**asdict(options.taste), "chance": 1 / size, "best_possible_top1": agreement}
    with atomic_file(options.out / "taste.json") as work:
        work.write_text(json.dumps(stated, indent=1) + "\n")
    print(
        f"{len(split.train)} choices in {options.out / 'preference_train.json'}, {len(split.test)} in "
        f"preference_test.json; the best possible classifier predicts {agreement:.1%} of them"
    )
