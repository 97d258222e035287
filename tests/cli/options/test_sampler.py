"""Every flag of `txt2img.py` does what it says, or is refused, or is warned of."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from dpt.backbone import open_backbone
from dpt.checkpoints import open_checkpoint
from dpt.checkpoints.export import export_checkpoint
from dpt.cli.common.console import parse_options
from dpt.cli.txt2img import main as txt2img
from dpt.cli.txt2img.options import Options
from tests import tiny_models
from tests.checkpoints.making import tiny_result
from tests.cli.options.checks import Effect, Proven, Refused, assert_effect, fields_of
from tests.cli.options.drawing import Drawing, drawn
from tests.cli.options.sampler_table import SAMPLER

SMALL = "--num_timesteps 2 --n_samples 1 --gpu cpu --pretrained_model_name_or_path {model}"


class Bench:
    """Drawings, each made once."""

    def __init__(self, places: dict[str, str], runs: Path) -> None:
        self.places, self.runs = places, runs
        self._parsed: dict[str, Any] = {}
        self._seen: dict[tuple[str, int], Drawing] = {}

    def words(self, more: str = "") -> list[str]:
        return shlex.split(f"{SMALL} --outdir {self.runs} {more}".format(**self.places))

    def options(self, more: str = "") -> Any:
        if more not in self._parsed:
            flat: Any = tyro.conf.OmitArgPrefixes[Options]
            self._parsed[more] = parse_options(flat, self.words(more), "txt2img.py")
        return self._parsed[more]

    def told(self) -> dict[str, Any]:
        effects = [f"--{flag} {check.words}" for flag, check in SAMPLER.items() if isinstance(check, Effect)]
        return fields_of(self.options(" ".join(effects)))

    def look(self, options: Options, whole: bool, number: int) -> Drawing:
        key = (repr(options), number)
        if key not in self._seen:
            where = self.runs / str(len(self._seen)) if options.outdir == self.runs else options.outdir
            self._seen[key] = drawn(replace(options, outdir=where))
        return self._seen[key]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("places")
    model = tiny_models.save(tiny_models.POCKET, folder / "model")
    result = tiny_result(open_backbone(model, device="cpu"), folder / "result")
    export_checkpoint(open_checkpoint(result / "adapter"), "published", folder / "published")
    (folder / "prompts.txt").write_text("a star\ntwo circles\n")
    places = {
        "model": model,
        "other": tiny_models.save(tiny_models.POCKET, folder / "other", seed=9),
        "result": result,
        "published": folder / "published",
        "prompts": folder / "prompts.txt",
        "elsewhere": folder / "elsewhere",
    }
    return Bench({name: str(place) for name, place in places.items()}, folder / "runs")


@pytest.mark.parametrize("flag", SAMPLER)
def test_it_does_what_is_claimed(flag: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    check = SAMPLER[flag]
    if isinstance(check, Effect):
        assert_effect(flag, check, bench.options(check.beside), bench.told(), bench.look)
    elif isinstance(check, Proven):
        check.function()
    else:
        code = txt2img.main(bench.words(f"--{flag} {check.words}"))
        assert check.sentence in capsys.readouterr().err
        assert code == (2 if isinstance(check, Refused) else 0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--guidance_start 0.9 --guidance_end 0.95", "nothing is guided: no step is in 0.9 to 0.95 of the way"),
        ("--ckpt {result} --correction_start 0.9 --correction_end 0.95",
         "nothing is corrected: no step that fused could move is in 0.9 to 0.95 of the way"),
        ("--ckpt {result} --num_timesteps 1", "nothing is corrected: no step that fused could move is in 0 to 0.6"),
        ("--ckpt {result} --num_timesteps 1 --correction_factor 1", ""),
        ("--guidance_start 0.4 --guidance_end 0.6", ""),
    ],
)  # fmt: skip
def test_an_interval_without_a_step_is_warned_of(
    words: str, sentence: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert txt2img.main(bench.words(words)) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: nothing is")]
    assert len(said) == bool(sentence) and all(sentence in line for line in said)
