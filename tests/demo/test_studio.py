"""The demo page: its images are those of txt2img's methods, and a visitor can open nothing but what it offers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dpt.cli.main import run
from dpt.demo.studio import Drawing, Studio
from dpt.embedded import EMBEDDED
from dpt.errors import UserError
from dpt.generation_defaults import GenerationDefaults
from dpt.methods.base import GenerationConfig
from dpt.methods.registry import parse_methods
from dpt.sampling.draw import Request
from dpt.sampling.options import SamplerConfig

PROMPT = "two green crosses"


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio((EMBEDDED,), num_timesteps=2, keep=2)


@pytest.mark.slow
def test_both_methods_draw_the_registrys_images_from_the_same_noise(studio: Studio, tmp_path: Path) -> None:
    drawing = Drawing(EMBEDDED, ("base", "sld"), PROMPT, seed=3, images=2)
    drawn = studio.draw(drawing)
    assert list(drawn) == ["base", "sld"] and [len(images) for images in drawn.values()] == [2, 2]
    (config,) = parse_methods(["base"], 2)
    expected = config.open(GenerationConfig(EMBEDDED, SamplerConfig(2, 3.0))).make(
        [Request(PROMPT, 3, index) for index in range(2)]
    )
    for image, other in zip(drawn["base"], expected, strict=True):
        assert np.array_equal(np.asarray(image.image), np.asarray(other))
    for image in (*drawn["base"], *drawn["sld"]):
        assert image.verdict == "right" if image.passed else image.verdict.startswith("wrong, not ")
        assert image.clip is not None
    with zipfile.ZipFile(studio.archive(drawing, drawn, tmp_path / "drawn.zip")) as content:
        manifest = json.loads(content.read("manifest.json"))
        assert content.namelist() == ["base-0.png", "base-1.png", "sld-0.png", "sld-1.png", "manifest.json"]
    assert (manifest["prompt"], manifest["seed"], manifest["settings"]["num_timesteps"]) == (PROMPT, 3, 2)
    assert manifest["methods"]["sld"]["sld"]["detector"] and manifest["images"][2]["verdict"] == drawn["sld"][0].verdict


def test_a_prompt_that_no_rule_understands_is_drawn_and_not_judged(studio: Studio) -> None:
    (image,) = studio.draw(Drawing(EMBEDDED, ("base",), "a dragon"))["base"]
    assert image.passed is None and "does not know dragon" in image.caption


def test_only_offered_models_and_methods_are_opened(studio: Studio, tmp_path: Path) -> None:
    for model, method in ((EMBEDDED, f"x={tmp_path}"), (str(tmp_path), "base"), (EMBEDDED, "nothing")):
        with pytest.raises(UserError, match="does not offer"):
            studio.draw(Drawing(model, (method,), PROMPT))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "type a prompt"),
        ({"prompt": "x" * 401}, "the prompt is longer than 400"),
        ({"negative_prompt": "x" * 401}, "the negative prompt is longer"),
        ({"images": 5}, "from 1 to 4"),
        ({"seed": -1}, "the seed must be from 0"),
    ],
)
def test_requests_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Drawing(**{"model": EMBEDDED, "methods": ("base",), "prompt": PROMPT, **change})  # type: ignore[arg-type]


def test_the_methods_used_last_stay_open(studio: Studio) -> None:
    for name in ("base", "dpt", "base", "control"):
        studio.method(EMBEDDED, name)
    assert [name for _, name in studio.opened] == ["base", "control"]


def test_the_negative_prompt_of_the_checkpoint_is_offered(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    assert studio.negative_prompt(EMBEDDED, "dpt") == ""
    carried = GenerationDefaults(negative_prompt="Weird image. ")
    monkeypatch.setattr("dpt.demo.studio.generation_defaults", lambda folder: carried)
    assert studio.negative_prompt(EMBEDDED, "corrected-sld") == "Weird image. "


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'dpt\[demo\]'"):
        run(["demo"])


def test_the_page_shows_verdicts_and_reports_errors(studio: Studio) -> None:
    gradio = pytest.importorskip("gradio")
    from dpt.demo import page

    blocks, _ = page.build(studio)
    archives = page.Archives(keep=1)
    assert blocks.analytics_enabled is False and blocks.delete_cache == page.COPY_CLEANUP
    title, html, *_, download = page.on_draw(studio, archives, EMBEDDED, "sld", "base", PROMPT, "", 3, 1)
    assert title in ("### sld: 1 of 1 right", "### sld: 0 of 1 right")
    assert ('<figure class="right">' in html and "✓ right" in html) == ("1 of 1" in title)
    assert Path(download.value["path"] if isinstance(download.value, dict) else download.value).suffix == ".zip"
    with pytest.raises(gradio.Error, match="type a prompt"):
        page.on_draw(studio, archives, EMBEDDED, "sld", "base", "", "", 3, 1)


def test_the_archives_of_earlier_drawings_are_removed_and_the_folder_at_the_end() -> None:
    from dpt.demo.page import Archives

    archives = Archives(keep=2)
    files = []
    for _ in range(4):
        files.append(archives.new())
        files[-1].write_bytes(b"zip")
    root = files[0].parents[1]
    assert [file.exists() for file in files] == [False, False, True, True] and len(list(root.iterdir())) == 2
    archives._folder.cleanup()
    assert not root.exists() and {file.name for file in files} == {"dpt.zip"}
