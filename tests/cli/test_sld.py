"""`dpt sld`: correct, edit and demo on the embedded model, as their users run them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpt.claims.facts import Box
from dpt.cli.main import run
from dpt.cli.txt2img.main import main as txt2img
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, Scene, SceneObject
from dpt.detect.oracle.oracle import Oracle
from dpt.errors import UserError
from dpt.evaluation.bench.columns import read_costs
from dpt.methods.base import DiffusionMethod
from dpt.methods.registry import parse_methods
from dpt.methods.sld.method import Corrector, SLDConfig
from dpt.methods.sld.record import read_config, read_entries
from tests.tiny_models import POCKET, save

Capture = pytest.CaptureFixture[str]

RED, BLUE = (
    SceneObject("circle", "red", "large", Box(38, 8, 59, 29)),
    SceneObject("square", "blue", "large", Box(6, 36, 27, 57)),
)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red circle to the right of, and above, a blue square."""
    file = tmp_path / "scene.png"
    Image.fromarray(render(Scene((RED, BLUE), "white"))).save(file)
    return file


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The rules and the oracle open no socket; only the tests of a server may."""
    if "server" in request.node.name:
        return

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "__init__", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_fixture_refuses_sockets() -> None:
    with pytest.raises(AssertionError, match="a socket was opened"):
        socket.socket()


def objects(file: Path) -> list[tuple[str | None, str]]:
    detections = Oracle(POCKET_WORLD).read(np.asarray(Image.open(file)))
    assert not detections.unreadable
    return sorted((d.colour, d.label) for d in detections.objects)


def test_a_wrong_image_is_corrected_and_its_folder_records_the_rounds(
    picture: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    command = ["sld", "correct", str(picture), "--prompt", "a blue square", "--out", str(out)]
    run(command)
    assert "right after 1 round: delete red circle #1" in capsys.readouterr().out
    folder = out / "scene"
    assert objects(folder / "result.png") == [("blue", "square")]
    names = {file.name for file in folder.iterdir()}
    assert names == {"start.png", "round1.png", "plan1.png", "mask1.png", "result.png", "strip.png", "report.json"}
    report = json.loads((folder / "report.json").read_text())
    assert (report["status"], report["ending"], report["best_round"]) == ("right", "right", 1)
    assert report["rounds"][1]["plan"] == ["delete red circle #1"]
    source, result = (np.asarray(Image.open(folder / f"{name}.png")) for name in ("start", "result"))
    assert np.array_equal(source[34:, :30], result[34:, :30])  # away from the edit: bit for bit
    before = (folder / "result.png").read_bytes()
    run(command)
    assert "done before" in capsys.readouterr().out
    with pytest.raises(UserError, match="another image, text or setting"):
        run([*command, "--seed", "1"])
    run([*command[:-1], str(tmp_path / "again")])
    assert (tmp_path / "again/scene/result.png").read_bytes() == before  # the same seed, the same bits


def test_a_right_image_is_unchanged(picture: Path, tmp_path: Path, capsys: Capture) -> None:
    prompt = "a red circle to the right of a blue square"
    run(["sld", "correct", str(picture), "--prompt", prompt, "--out", str(tmp_path / "out")])
    assert "already right, unchanged" in capsys.readouterr().out
    source, result = (np.asarray(Image.open(file)) for file in (picture, tmp_path / "out/scene/result.png"))
    assert np.array_equal(source, result)


@pytest.mark.slow
def test_an_instruction_is_followed(picture: Path, tmp_path: Path) -> None:
    run(["sld", "edit", str(picture), "--instruction", "turn the square green", "--out", str(tmp_path / "out")])
    assert objects(tmp_path / "out/scene/result.png") == [("green", "square"), ("red", "circle")]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["correct", "PICTURE", "--prompt", "a cat on a sofa"], "does not understand"),
        (["correct", "NOTHING", "--prompt", "a red circle"], "no such file"),
        (["correct", "--prompt", "a red circle"], "at least one image"),
        (["correct", "PICTURE", "PICTURE", "--prompt", "a red circle"], "two images are called scene"),
        (["correct", "PICTURE", "--prompt", "a red circle", "--strength", "2"], "--strength"),
        (["correct", "PICTURE", "--prompt", "a red circle", "--llm_model", "m"], "no effect with --llm rules"),
        (["correct", "PICTURE", "--prompt", "a red circle", "--readings", "0"], "from 1 to 9"),
        (["correct", "PICTURE", "--prompt", "a red circle", "--editor", "pixels"], "--editor is latents"),
        (["correct", "PICTURE", "--prompt", "a red circle", "--refiner", "NOTHING"], "no model_index.json"),
        (["edit", "PICTURE", "--instruction", "sing"], "the rules know"),
        (["edit", "PICTURE", "--instruction", "remove the star"], "1 of 1 images"),
        (["correct", "NO_IMAGE", "--prompt", "a red circle"], "cannot identify image file"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], why: str, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    places = {
        "PICTURE": str(picture),
        "NOTHING": str(tmp_path / "nothing.png"),
        "NO_IMAGE": str(tmp_path / "text.png"),
    }
    with pytest.raises(UserError, match=why):
        run(["sld", *(places.get(word, word) for word in words), "--out", str(tmp_path / "out")])


def test_images_of_every_kind_are_read_or_refused(picture: Path, tmp_path: Path, capsys: Capture) -> None:
    image = Image.open(picture)
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.convert("P").save(tmp_path / "palette.png")
    image.resize((1, 1)).save(tmp_path / "one.png")
    canvas = Image.new("RGB", (70, 66), (246, 246, 244))
    canvas.paste(image, (3, 1))
    canvas.save(tmp_path / "odd.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.rotate(180).save(tmp_path / "turned.jpg", exif=exif, quality=97)
    names = ["alpha.png", "palette.png", "odd.png", "turned.jpg"]
    files = [str(tmp_path / name) for name in names]
    out = tmp_path / "out"
    run(["sld", "correct", *files, "--prompt", "a blue square", "--out", str(out), "--strength", "0.3"])
    for name in names:
        assert objects(out / Path(name).stem / "result.png") == [("blue", "square")], name
    assert Image.open(out / "odd/result.png").size == (70, 66)
    capsys.readouterr()
    with pytest.raises(UserError, match="1x1 pixels"):
        run(["sld", "correct", str(tmp_path / "one.png"), "--prompt", "a blue square", "--out", str(out)])


def test_an_object_that_the_detector_cannot_see_leaves_the_image_as_it_was(
    picture: Path, tmp_path: Path, capsys: Capture
) -> None:
    for command in (["correct", "--prompt", "a cat"], ["edit", "--instruction", "add a cat"]):
        out = tmp_path / command[0]
        with pytest.raises(UserError, match="1 of 1 images could not be edited"):
            run(["sld", command[0], str(picture), *command[1:], "--out", str(out)])
        assert "does not detect 'cat'; its classes are circle" in capsys.readouterr().out
        assert json.loads((out / "scene/report.json").read_text())["status"] == "failed"
        assert np.array_equal(np.asarray(Image.open(out / "scene/result.png")), np.asarray(Image.open(picture)))


def test_a_server_that_is_down_leaves_the_image_as_it_was(picture: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["sld", "correct", str(picture), "--prompt", "anything at all", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="1 of 1 images could not be edited"):
        run([*words, "--llm", "openai", "--llm_model", "m", "--llm_url", "http://127.0.0.1:9/v1"])
    assert "cannot be reached" in capsys.readouterr().out
    report = json.loads((tmp_path / "out/scene/report.json").read_text())
    assert report["status"] == "failed"
    result = np.asarray(Image.open(tmp_path / "out/scene/result.png"))
    assert np.array_equal(result, np.asarray(Image.open(picture)))


INI = """[openai]
organization = "none"
api_key = 'sk-secret'
model = "gpt-4"
[dalle]
attr_detection_threshold = 0.55
[SLD]
default_seed = 7
prim_detection_threshold = 0.25
nms_threshold = 0.4
frozen_step_ratio = 0.4
SAM_refine_dilate = 5
num_rounds = 2
"""


def entry(**more: Any) -> dict[str, Any]:
    return {"input_fname": "scene", "output_dir": "first", "prompt": "a blue square", **more}


def test_the_published_demo_files_are_read_and_its_names_written(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "demo.ini").write_text(INI)
    parsed = {"objects": [["square", ["blue"]], ["circle", ["red"]]], "bg_prompt": "shapes", "neg_prompt": ""}
    goal = [["blue square #1", [0.09, 0.56, 0.33, 0.33]]]
    entries = [
        entry(llm_parsed_prompt=parsed, llm_layout_suggestions=goal, generator="dalle"),
        entry(output_dir="second"),
    ]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    out = tmp_path / "results"
    flags = [f"--json-file={tmp_path / 'data.json'}", f"--input-dir={tmp_path}", f"--output-dir={out}"]
    run(["sld", "demo", *flags, "--mode", "self_correction", "--config", str(tmp_path / "demo.ini")])
    for folder in ("first", "second"):
        names = {file.name for file in (out / folder).iterdir()}
        assert names == {"initial_image.png", "det_result_obj.png", "intermediate_scene.png", "final_scene.png"}
        assert objects(out / folder / "final_scene.png") == [("blue", "square")]
    assert Image.open(out / "first/det_result_obj.png").size == (900, 500)


def test_the_published_config_sets_the_corresponding_options(tmp_path: Path) -> None:
    file = tmp_path / "demo.ini"
    file.write_text(INI)
    config = read_config(file)
    assert (config.seed, config.llm_model, config.key) == (7, "gpt-4", "sk-secret")  # without quotes
    assert (config.loop.max_rounds, config.loop.strengths, config.engine.margin) == (2, (0.6,), 2)
    own, other = config.queries("dalle"), config.queries("unknown")
    assert (own.threshold, own.thresholds, own.nms) == (0.25, (("attribute", 0.55),), 0.4)
    assert other.thresholds == (("attribute", 0.6),)
    file.write_text(INI + "bg_seed = 42\n")
    assert "bg_seed has no effect" in read_config(file).warnings[0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[SLD]\nseed = 3\n", "no key 'seed'"),
        ("[SLD]\ndefault_seed = x\n", "must be a number"),
        ("[SLD]\ndefault_seed = 1e999\n", "default_seed must be a number, not '1e999'"),
        ("seed = 3", "no .ini file"),
    ],
)
def test_wrong_configs_are_one_sentence(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "demo.ini").write_text(content)
    with pytest.raises(UserError, match=why):
        read_config(tmp_path / "demo.ini")


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (entry(colour="red"), "unknown key 'colour'"),
        (entry(prompt=3), "'prompt' must be a text"),
        (entry(output_dir="../x"), "must stay inside"),
        (entry(llm_layout_suggestions=[["cat", [0, 0, 9]]]), "four numbers"),
        (entry(llm_parsed_prompt={"objects": "cat"}), "must be a list"),
        (entry(llm_parsed_prompt={"objects": [], "neg_prompt": 3}), "should be a text or a list, not 3"),
        ("scene", "must be an object"),
    ],
)
def test_wrong_entries_are_one_sentence_that_names_them(item: Any, why: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps([entry(), item]))
    with pytest.raises(UserError, match=f"entry 1.*{why}"):
        read_entries(tmp_path / "data.json")


def test_sld_follows_any_sampling_method_by_name() -> None:
    sld, after = parse_methods(["sld", "corrected+sld"], 25)
    assert isinstance(sld, SLDConfig) and isinstance(after, SLDConfig)
    assert (sld.name, sld.base.name, after.name) == ("sld", "base", "corrected-sld")
    assert after.base.correction.on
    with pytest.raises(UserError, match="can only follow"):
        parse_methods(["sld+sld"], 25)
    (owl,) = parse_methods(["base+sld=owlv2,rounds=1,policy=edit"], 25)
    assert isinstance(owl, SLDConfig)
    assert (owl.detector, owl.masks, owl.loop.max_rounds, owl.loop.policy) == ("owlv2", "ellipse", 1, "edit")
    for text, why in (("x,size=3", "no option"), ("x,rounds=a", "invalid"), ("x,policy=a", "policy")):
        with pytest.raises(UserError, match=why):
            parse_methods([f"base+sld={text}"], 25)


@pytest.mark.slow
def test_a_benchmark_repairs_the_images_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(POCKET, tmp_path / "tiny")
    words = f"bench run base+sld=oracle,rounds=1 --pretrained_model_name_or_path {model} --categories single".split()
    words += "--prompts 2 --per_prompt 1 --num_timesteps 2 --guidance_scale 2 --out".split()  # noqa: SIM905
    run([*words, str(tmp_path / "alone")])
    run([*words[:2], "base", *words[3:], str(tmp_path / "both")])
    monkeypatch.setattr(DiffusionMethod, "make", lambda *_: pytest.fail("the images of base were drawn again"))
    run([*words, str(tmp_path / "both")])
    for name in ("base-sld.jsonl", *(f"base-sld/{file.name}" for file in (tmp_path / "alone/base-sld").iterdir())):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    passes = [read_costs(tmp_path / name, ["base-sld"])["base-sld"].passes for name in ("alone", "both")]
    assert passes[0] == passes[1] > 4


@pytest.mark.slow
def test_another_editor_and_a_refiner_are_flags_and_part_of_the_record(picture: Path, tmp_path: Path) -> None:
    own = save(POCKET, tmp_path / "tiny")
    words = ["sld", "correct", str(picture), "--prompt", "a blue square", "--out", str(tmp_path / "out")]
    words += ["--pretrained_model_name_or_path", str(own), "--editor", f"inpaint={own}", "--refiner", str(own)]
    run([*words, "--readings", "3", "--max_rounds", "1", "--guidance_scale", "2"])
    report = json.loads((tmp_path / "out/scene/report.json").read_text())
    inputs = report["inputs"]
    assert inputs["editor"].startswith("inpaint tiny ") and inputs["refiner"].startswith("tiny ")
    assert inputs["readings"] == 3
    assert [round_["action"] for round_ in report["rounds"]] == [None, "edit", "refine"]
    assert report["best_round"] < 2  # random weights: what they refine is unreadable
    with pytest.raises(UserError, match="another image, text or setting"):
        run([*words, "--max_rounds", "1", "--guidance_scale", "2"])


@pytest.mark.slow
def test_edits_are_counted_by_kind_and_finished_ones_are_kept(tmp_path: Path, capsys: Capture) -> None:
    words = ["sld", "bench", "--num", "1", "--max_rounds", "0", "--out", str(tmp_path)]
    run(words)
    lines = (tmp_path / "edits.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["kind"] for row in rows] == ["remove", "add", "move", "swap", "replace", "resize", "recolour"]
    assert not any(row["passed"] for row in rows)  # without a round nothing is edited
    assert "| all | 0 | 7 | 0.0 (0.0-35.4) |" in capsys.readouterr().out
    (tmp_path / "edits.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    run(words)
    again = (tmp_path / "edits.jsonl").read_text().splitlines()
    assert again == lines


@pytest.mark.slow
def test_txt2img_samples_by_a_method(tmp_path: Path, capsys: Capture) -> None:
    words = ["--prompt", "a red circle", "--n_samples", "2", "--num_timesteps", "5", "--outdir", str(tmp_path)]
    assert txt2img([*words, "--method", "sld"]) == 0
    assert "2 images by sld" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["method"]["name"] == "sld" and "loop" in manifest["method"]["sld"]
    assert {file.name for file in folder.iterdir()} == {"000.png", "001.png", "contact_sheet.png", "manifest.json"}
    for more, why in (
        (["--compare"], "--compare and --method"),
        (["--correction_factor", "1"], "--correction_factor and --method"),
        (["--gpu", "3"], "CUDA_VISIBLE_DEVICES"),
    ):
        assert txt2img([*words, "--method", "sld", *more]) == 2
        assert why in capsys.readouterr().err


def without_seconds(file: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": None} for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_images_of_a_benchmark_are_corrected_counted_and_resumed_bit_for_bit(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--categories", "single", "count", "--prompts", "2", "--per_prompt", "2", "--num_timesteps", "4"]
    run(["bench", "run", "base", *words, "--out", str(tmp_path / "bench")])
    measure = ["sld", "measure", str(tmp_path / "bench"), "--max_rounds", "1", "--per_prompt", "1"]
    measure += ["--candidates", str(tmp_path / "bench")]
    run([*measure, "--out", str(tmp_path / "whole")])
    rows = without_seconds(tmp_path / "whole/base-sld.jsonl")
    assert [row["category"] for row in rows] == ["single", "count"] * 2  # in turn
    assert all(row["after"] for row in rows if row["before"])
    assert any(row["calls"] for row in rows)
    for row in rows:
        start, end = (Image.open(tmp_path / f"{place}/{row['prompt_id']}-0.png") for place in ("bench/base", "whole/base-sld"))  # fmt: skip  # noqa: E501
        assert len(row["rounds"]) > 1 or start.tobytes() == end.tobytes()
    strips = Image.open(tmp_path / "whole/strips.png")
    assert strips.width > 3 * 64 and strips.height > 64
    page = (tmp_path / "whole/table.md").read_text()
    assert "| all |" in page and "best of n images of base" in page and page in capsys.readouterr().out
    correct, calls = Corrector.correct, []

    def killed_or_failing(self: Corrector, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return correct(self, *arguments, **options)

    monkeypatch.setattr(Corrector, "correct", killed_or_failing)
    with pytest.raises(KeyboardInterrupt):
        run([*measure, "--out", str(tmp_path / "killed")])
    lines = tmp_path / "killed/base-sld.jsonl"
    lines.write_bytes(lines.read_bytes()[:-20])  # in the middle of a line
    run([*measure, "--out", str(tmp_path / "killed")])
    assert without_seconds(lines) == rows
    for file in (tmp_path / "whole/base-sld").iterdir():
        assert file.read_bytes() == (tmp_path / "killed/base-sld" / file.name).read_bytes()
    with pytest.raises(UserError, match="choose another --out"):
        run([*measure[:4], "2", *measure[5:], "--out", str(tmp_path / "killed")])
    with pytest.raises(UserError, match="no method 'dpt'"):
        run([*measure, "--method", "dpt", "--out", str(tmp_path / "dpt")])

    def refuse(self: Corrector, *arguments: Any, **options: Any) -> Any:
        raise UserError("the server is down")

    monkeypatch.setattr(Corrector, "correct", refuse)
    run([*measure, "--out", str(tmp_path / "failed")])  # one failure does not end the others
    failed = without_seconds(tmp_path / "failed/base-sld.jsonl")
    assert [(row["status"], row["before"] == row["after"]) for row in failed] == [("failed", True)] * 4
    assert "Could not be corrected: 4" in (tmp_path / "failed/table.md").read_text()
