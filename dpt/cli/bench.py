"""`dpt bench`: draw a suite by several methods, judge every picture, and compare them picture by picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dpt.cli.txt2img import EMBEDDED
from dpt.errors import UserError, fail

if TYPE_CHECKING:
    from dpt.backbone import Backbone
    from dpt.evaluation.bench.rows import Row
    from dpt.evaluation.suites.base import Prompt

BASE = "base"
CATEGORIES = ("single", "binding", "count", "spatial", "negation")
RECORD = "bench.json"
SHOWN = 4


@dataclass(frozen=True)
class RunOptions:
    """Draw the pocket suite by each method, from the same noise, and let the oracle judge every picture.

    Stop and repeat at will: it goes on where it was left. Lines go into OUT/METHOD.jsonl, pictures into OUT/METHOD/.
    """

    methods: tyro.conf.Positional[tuple[str, ...]]
    """base for the model itself, or NAME=PATH for it with the LoRA there: a result of training, or any LoRA file."""
    out: Path = Path("outputs/bench")
    pretrained_model_name_or_path: Annotated[str, tyro.conf.arg(metavar="FOLDER|HUB_ID")] = EMBEDDED
    categories: tuple[str, ...] = CATEGORIES
    prompts: int = 300
    """Prompts per category."""
    per_prompt: int = 4
    """Pictures per prompt."""
    seed: int = 0
    """Another seed has other prompts."""
    num_timesteps: int = 25
    guidance_scale: float = 3.0
    scheduler: str = "ddim"
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the UNet and the text encoder; by default what the device does well. A CPU that multiplies
    bf16 draws more than twice as fast with it."""


@dataclass(frozen=True)
class ReportOptions:
    """Count what `dpt bench run` has written: rates, paired differences, and a sheet of pictures of the same noise."""

    folder: tyro.conf.Positional[Path]
    baseline: str = BASE
    """The method that the others are compared with."""
    also: tuple[str, ...] = ()
    """Further methods to be compared with, for instance a control."""
    out: Path | None = None
    """Where results.json, table.md and sheet.png go; default: the folder itself."""


def run(options: RunOptions) -> None:
    for name in ("prompts", "per_prompt", "num_timesteps"):
        if getattr(options, name) < 1:
            fail(f"--{name} must be at least 1, not {getattr(options, name)}")
    methods = parse_methods(options.methods)
    from tqdm import tqdm

    from dpt.data.scenes.world import POCKET_WORLD
    from dpt.evaluation.bench import run as bench
    from dpt.evaluation.detectors.oracle import Oracle
    from dpt.evaluation.suites.pocket import SUITE_ID
    from dpt.sampling.draw import Settings

    settings = Settings(options.num_timesteps, options.guidance_scale, options.scheduler)
    asked = bench.everything(prompts_of(options), options.per_prompt, SUITE_ID)
    detector = Oracle(POCKET_WORLD)
    for name, folder in methods.items():
        backbone, identity = open_method(folder, options)
        claim(options, name, {"detector": detector.identity, "suite": SUITE_ID, **identity})
        with tqdm(total=len(asked), desc=name, unit="picture") as bar:
            bench.run(name, backbone, asked, detector, settings, options.out, bar.update)


def parse_methods(said: Sequence[str]) -> dict[str, Path | None]:
    if not said:
        fail("say which methods to run: base, or NAME=FOLDER of a LoRA")
    methods: dict[str, Path | None] = {}
    for one in said:
        name, given, folder = one.partition("=")
        if not given and name != BASE:
            fail(f"the method {one!r} is not base, and names no folder: say {one}=FOLDER")
        if not name.replace("-", "").replace("_", "").isalnum():
            fail(f"the method {name!r} becomes a file's name: use letters, digits, - and _")
        if name in methods:
            fail(f"the method {name!r} is there twice")
        methods[name] = Path(folder) if given else None
    return methods


def prompts_of(options: RunOptions) -> list[Prompt]:
    from dpt.evaluation.suites.pocket import CATEGORIES, pocket_prompts

    prompts: list[Prompt] = []
    for category in options.categories:
        if category not in CATEGORIES:
            fail(f"there is no category {category!r}; the categories are {', '.join(CATEGORIES)}")
        prompts += pocket_prompts(category, options.prompts, options.seed)
    return prompts


def open_method(folder: Path | None, options: RunOptions) -> tuple[Backbone, dict[str, str]]:
    """The model as that method has it, and what it is made of."""
    from dpt.backbone import Backbone
    from dpt.checkpoints import open_checkpoint
    from dpt.cli.txt2img import model_location
    from dpt.weights import content_hash

    dtype = "float32" if options.mixed_precision == "no" else options.mixed_precision
    backbone = Backbone.open(model_location(options.pretrained_model_name_or_path), dtype=dtype)
    if folder is None:
        return backbone, {"model": backbone.model_hash}
    checkpoint = open_checkpoint(folder)
    lora = checkpoint.attach(backbone)
    if checkpoint.lora is None or lora is None:
        fail(f"{folder} has no LoRA: it would draw what {BASE} draws")
    lora.merge()
    return backbone, {"model": backbone.model_hash, "lora": content_hash(checkpoint.lora.tensors)}


def claim(options: RunOptions, method: str, identity: Mapping[str, Any]) -> None:
    """Make the folder that of this benchmark; refuse one that was drawn otherwise."""
    from dpt.records import to_plain

    asked = {key: value for key, value in to_plain(options).items() if key not in ("methods", "out")}
    file = options.out / RECORD
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        record = json.loads(file.read_text()) if file.exists() else {"asked": asked, "methods": {}}
        known = record["methods"].setdefault(method, dict(identity))
        if record["asked"] != asked or known != identity:
            fail(f"{options.out} holds a benchmark that was run otherwise; choose another --out")
        file.write_text(json.dumps(record, indent=1) + "\n")
    except (ValueError, KeyError, AttributeError):
        fail(f"{file} is not the record of a benchmark")
    except OSError as error:
        fail(f"cannot write into {options.out}: {error.strerror or error}")


def report(options: ReportOptions) -> None:
    from dpt.evaluation.bench import report as counting
    from dpt.evaluation.bench import rows

    known = methods_in(options.folder)
    found = {name: rows.read(options.folder / f"{name}.jsonl") for name in known}
    for name in (options.baseline, *options.also):
        if name not in found:
            fail(f"there is no method {name!r} in {options.folder}; there are {', '.join(found)}")
    tables = counting.table(counting.results(found))
    apart = [
        counting.difference(found[name], found[other])
        for other in (options.baseline, *options.also)
        for name in found
        if name not in (options.baseline, other)
    ]
    if apart:
        tables += "\n\n" + counting.difference_table(apart)
    write(options, tables, counting.results(found), apart, found)
    print(tables)


def methods_in(folder: Path) -> list[str]:
    try:
        record = json.loads((folder / RECORD).read_text())
        return [str(name) for name in record["methods"]]
    except OSError:
        raise UserError(f"{folder} is not the folder of a benchmark: it has no {RECORD}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / RECORD} is not the record of a benchmark") from None


def write(
    options: ReportOptions, tables: str, results: Any, differences: Any, found: Mapping[str, Sequence[Row]]
) -> None:
    from dataclasses import asdict

    out = options.out or options.folder
    record = json.loads((options.folder / RECORD).read_text())
    counted = {"results": [asdict(one) for one in results], "differences": [asdict(one) for one in differences]}
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps({**record, **counted}, indent=1) + "\n")
        (out / "table.md").write_text(f"{tables}\n")
        sheet(options.folder, found).save(out / "sheet.png", optimize=True)
    except OSError as error:
        fail(f"cannot write into {out}: {error.strerror or error}")


def sheet(folder: Path, found: Mapping[str, Sequence[Row]]) -> Any:
    """The first prompts of each category, none chosen; a row for each method, a column for each prompt."""
    from PIL import Image

    from dpt.evaluation.contact_sheet import contact_sheet

    first: dict[str, list[Row]] = {}
    for row in next(iter(found.values())):
        of_category = first.setdefault(row.category, [])
        if row.index == 0 and len(of_category) < SHOWN:
            of_category.append(row)
    pictures, captions = [], []
    for rows in first.values():
        for name, own in found.items():
            by_key = {row.key: row for row in own}
            for wanted in rows:
                row = by_key[wanted.key]
                pictures.append(Image.open(folder / name / f"{row.prompt_id}-{row.index}.png"))
                captions.append(f"{name}, {'right' if row.passed else 'wrong'}: {row.prompt}")
    return contact_sheet(pictures, captions, columns=SHOWN * (2 if len(first) % 2 == 0 else 1))
