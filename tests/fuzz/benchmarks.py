"""Parsers of benchmark folders, caches and model folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from dpt.backbone.folder import UNET, VAE, ModelFolder
from dpt.checkpoints.open import describe_model, format_summary
from dpt.cli.bench import common as bench_record
from dpt.cli.bench.report import picture_file
from dpt.data.cache.latents import CachedLatents, NpyLatents
from dpt.data.cache.storage import KEY, MANIFEST, CachePart, PartBuilder, index_file, shard_file
from dpt.errors import BrokenImageError, UserError
from dpt.evaluation.bench import results as rows
from dpt.evaluation.bench import tables as report
from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.gallery import Album
from dpt.evaluation.bench.page import ReportData, page
from dpt.evaluation.bench.verdicts import NUMBERS, SUMMARY, read_summary, summary
from dpt.evaluation.suites.pocket import DEFAULT_CATEGORIES
from dpt.files import sha256
from tests import tiny_models
from tests.evaluation.bench.rows import row
from tests.fuzz.checkpoints import HEADERS, HOSTILE_HEADERS
from tests.fuzz.containers import mutate_header
from tests.fuzz.data_files import HOSTILE_JSON, JSON_MUTATIONS, LINE_MUTATIONS
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.parser import Parser, Target

SETTINGS = {
    "suite": "pocket",
    "categories": list(DEFAULT_CATEGORIES),
    "prompts": 2,
    "per_prompt": 1,
    "seed": 0,
    "num_timesteps": 30,
    "scheduler": "ddim",
    "guidance_scale": 7.5,
    "detector": None,
    "colours": None,
    "clip": None,
}
BENCH = {
    "asked": SETTINGS,
    "methods": {"base": {"model": "ab" * 32, "detector": "oracle"}, "dpt": {"detector": "oracle"}},
}


def bench(folder: Path) -> Target:
    def read() -> None:
        record = bench_record.read_record(folder)
        bench_record.check_one_judge(record["methods"], folder)
        for method in record["methods"]:
            picture_file(folder, record, method, *row(method).key)
        bench_record.recorded_requests(record, bench_record.recorded_suite(record))
        bench_record.register_method(folder, SETTINGS, "base", BENCH["methods"]["base"])

    return Target(folder / bench_record.RECORD, [json.dumps(BENCH).encode()], read)


def lines(folder: Path) -> Target:
    """Read, count, compare and render them."""
    file = folder / "base.jsonl"
    other = [row("dpt", "a", clip=0.3), row("dpt", "b", passed=False, clip=0.4)]
    for method in ("base", "dpt"):
        (folder / method).mkdir()
        for name in ("a", "b"):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / method / f"{name}-0.png")

    def read() -> None:
        rows.repair(file)
        methods = {"base": MethodResults.read(file), "dpt": MethodResults.of(other)}
        results = report.compute_results(methods)
        apart = [report.paired_difference(methods["dpt"], methods["base"])]
        report.tables(results, apart)
        page(ReportData(BENCH, "base", results, apart, methods), Album(folder, "flat", 10**6))

    good = [row("base", "a", clip=0.25), row("base", "b", clip=0.5)]
    return Target(file, ["".join(json.dumps(asdict(result)) + "\n" for result in good).encode()], read)


def part(folder: Path) -> Path:
    tensors = {name: torch.arange(24.0).reshape(3, 2, 2, 2) for name in ("latents", "mirrored")}
    builder = PartBuilder(folder, {"dtype": "float32", "resolution": 64}, list(tensors))
    with builder.claimed():
        builder.resume(lambda name, facts: True)
        builder.add([(f"{name}.jpg", [9, 8, 8, 1]) for name in "abc"], tensors, {"broken.jpg": [3, "cut"]})
        builder.finish()
    return folder


def read_part(folder: Path) -> None:
    opened = CachePart.open(folder)
    latents = CachedLatents(opened, folder)
    str(latents)
    for name in opened.broken:
        with suppress(BrokenImageError):
            latents.header(folder / name)
    for name in opened.rows:
        picture = folder / name
        _ = latents.header(picture).size
        for mirrored in (False, latents.has_mirrored):
            latents.latents(picture, mirrored)


def cache_manifest(folder: Path) -> Target:
    file = part(folder) / MANIFEST
    return Target(file, [file.read_bytes()], lambda: read_part(folder))


def cache_file(of: Callable[[Path], Path]) -> Callable[[Path], Target]:
    """An index or a shard and a manifest with its checksum, since an attacker can change both."""

    def make(folder: Path) -> Target:
        shard = shard_file(part(folder), 0)
        file, manifest = of(shard), json.loads((folder / MANIFEST).read_text())

        def read() -> None:
            facts = manifest["shards"][shard.name]
            facts |= {"bytes": shard.stat().st_size, "index_sha256": sha256(index_file(shard))}
            (folder / MANIFEST).write_text(json.dumps(manifest))
            read_part(folder)

        return Target(file, [file.read_bytes()], read)

    return make


def cache_resumed(folder: Path) -> Target:
    """Resuming an unfinished part, which trusts the index of its shard."""
    shard = shard_file(part(folder), 0)
    whole = shard.read_bytes()

    def read() -> None:
        shard.write_bytes(whole)
        builder = PartBuilder(folder, {"dtype": "float32", "resolution": 64}, ["latents", "mirrored"])
        with builder.claimed():
            messages = builder.resume(lambda name, facts: isinstance(facts[0], int))
            _ = builder.done, builder.broken
        if messages:
            raise UserError(*messages)

    return Target(index_file(shard), [index_file(shard).read_bytes()], read)


def cache_key(folder: Path) -> Target:
    part(folder)

    def read() -> None:
        with PartBuilder(folder, {"dtype": "float32", "resolution": 64}, ["latents"]).claimed():
            pass

    return Target(folder / KEY, [(folder / KEY).read_bytes()], read)


def npy(folder: Path) -> Target:
    file = folder / "a.npy"
    samples = []
    for kind in ("f4", "f2", ">f8"):
        np.save(file, np.ones((4, 2, 2), kind))
        samples.append(file.read_bytes())

    def read() -> None:
        NpyLatents(folder, (4, 2, 2)).latents(folder / "a.jpg")

    return Target(file, samples, read)


def earlier_report(name: str) -> Callable[[Path], Target]:
    """An earlier report, whose methods are merged into a new one."""

    def make(folder: Path) -> Target:
        rows_of_report = [row("base", "a"), row("base", "b", passed=False)]
        methods = {"base": MethodResults.of(rows_of_report)}
        results = [asdict(result) for result in report.compute_results(methods)]
        numbers = {"asked": SETTINGS, "methods": {"base": {"detector": "oracle"}}, "results": results}
        (folder / NUMBERS).write_text(json.dumps(numbers))
        (folder / SUMMARY).write_text("".join(summary(methods)))
        file = folder / name
        drawn = MethodResults.of([row("dpt", "a"), row("dpt", "b")])

        def read() -> None:
            summary = read_summary(folder)
            for result in summary.results:
                summary.check(result.method, summary.method_results(result.method, drawn))

        return Target(file, [file.read_bytes()], read)

    return make


def model_file(name: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        model = tiny_models.save(tiny_models.SD2_BASE, folder / "model")
        file = model / name
        if file.name.endswith(".index.json"):
            single = file.with_name(file.name.removesuffix(".index.json"))
            shutil.move(single, single.with_name("part-1.safetensors"))
            file.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "part-1.safetensors"}}))

        sample = file.read_bytes()
        for weights in model.rglob("*.safetensors"):  # their content is not read here
            weights.write_bytes(save({"a": torch.ones(1)}))

        def read() -> None:
            ModelFolder.check(model)
            format_summary(describe_model(model))

        return Target(file, [save({"a": torch.ones(2)}) if file.suffix == ".safetensors" else sample], read)

    return make


HEADER = b"\x93NUMPY\x01\x00"
HOSTILE_NPY = tuple(
    HEADER + len(header).to_bytes(2, "little") + header
    for header in (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999, 2), }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 2, 2), }\n" + b"cos\nsystem\n(S'false'\ntR.",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2, 2), }\n",
        b"(" * 5000,
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,), }\n",
    )
)

PARSERS = (
    Parser("benchmark: bench.json", bench, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("benchmark: lines", lines, LINE_MUTATIONS, HOSTILE_JSON),
    Parser("benchmark: numbers of a kept report", earlier_report(NUMBERS), JSON_MUTATIONS, HOSTILE_JSON),
    Parser("benchmark: summary of a kept report", earlier_report(SUMMARY), LINE_MUTATIONS, HOSTILE_JSON),
    Parser("cache: manifest", cache_manifest, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("cache: index", cache_file(index_file), JSON_MUTATIONS, HOSTILE_JSON),
    Parser("cache: shard", cache_file(lambda shard: shard), HEADERS, HOSTILE_HEADERS),
    Parser("cache: index of an unfinished one", cache_resumed, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("cache: key", cache_key, JSON_MUTATIONS, HOSTILE_JSON),
    Parser("cache: published latents", npy, (mutate_bytes,), HOSTILE_NPY),
    Parser("model: index", model_file("model_index.json"), JSON_MUTATIONS, HOSTILE_JSON),
    Parser("model: configuration", model_file(f"{UNET.name}/config.json"), JSON_MUTATIONS, HOSTILE_JSON),
    Parser(
        "model: weights",
        model_file(f"{VAE.name}/diffusion_pytorch_model.safetensors"),
        (mutate_header,),
        HOSTILE_HEADERS,
    ),
    Parser(
        "model: index of weights",
        model_file(f"{VAE.name}/diffusion_pytorch_model.safetensors.index.json"),
        JSON_MUTATIONS,
        HOSTILE_JSON,
    ),
)
