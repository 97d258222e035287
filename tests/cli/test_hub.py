"""`--push_to_hub` against a local fake hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from dpt.adapter.io import load_adapter
from dpt.cli.train import stages as train_stage2
from dpt.cli.train.options import HubOptions
from dpt.cli.train.stages import Stage1Options, main_stage1
from tests.cli import fake_hub
from tests.cli.fake_hub import TOKEN, FakeHub
from tests.cli.test_train import SMALL, refused
from tests.training import tiny_stage1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.running() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)  # whoever runs the tests may have logged in
        yield hub


@pytest.fixture
def command(model: Path, tmp_path: Path) -> list[str]:
    fixed = ["--output_dir", str(tmp_path / "logs"), "--run_name", "probe"]
    return ["--pretrained_model_name_or_path", str(model), *SMALL, *fixed, "--push_to_hub"]


def test_results_of_a_run_are_uploaded(
    command: list[str], hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train_stage1.py", *command, "--validation_steps", "2", "--hub_token", TOKEN])
    assert main_stage1() == 0
    output = capsys.readouterr()
    assert f"uploaded to {hub.address}/someone/probe" in output.out
    files = hub.repositories["someone/probe"]
    assert files.keys() == {"adapter.json", "adapter.safetensors", "curve.png", "README.md"}
    for name, content in files.items():
        (tmp_path / "downloaded" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "downloaded" / name).write_bytes(content)
    assert load_adapter(tmp_path / "downloaded")[0].config.unet_feature == "up0"

    card = files["README.md"].decode()
    header = card.split("---")[1]
    assert "base_model: model" in header and "license: other\nlicense_name: same-as-base-model" in header
    assert "| `learning_rate` | `0.0001` |" in card and "| `steps` | `2` |" in card
    assert "After step 2.\n" in card and "| `itm_txt` | 0." in card and "| `rec_p1` | " in card
    assert str(tmp_path) not in card

    assert TOKEN not in output.out + output.err and sys.argv[-1] == "***"
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not any(TOKEN.encode() in file.read_bytes() for file in written)
    assert not any("hub" in name for name in json.loads((tmp_path / "logs" / "probe" / "config.json").read_text()))


def test_both_results_of_stage_2_are_uploaded(command: list[str], hub: FakeHub) -> None:
    words = ["--lora_blocks", "mid", "--validation_steps", "0", "--hub_token", TOKEN, "--hub_model_id", "team/tuned"]
    assert train_stage2.main_stage2([*command, *words]) == 0
    weights = {"adapter/adapter.json", "adapter/adapter.safetensors", "lora/lora.json", "lora/lora.safetensors"}
    assert hub.repositories["team/tuned"].keys() == {*weights, "curve.png", "README.md"}


def test_the_token_is_not_shown_with_the_options() -> None:
    assert TOKEN not in repr(Stage1Options(hub=HubOptions(True, TOKEN)))


def test_token_of_the_logged_in_user_is_used(command: list[str], hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    assert main_stage1([*command, "--hub_model_id", "team/adapter", "--validation_steps", "0"]) == 0
    assert "The run was not validated." in hub.repositories["team/adapter"]["README.md"].decode()


def test_missing_write_access_is_detected_before_training(
    command: list[str], hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with_token = [*command, "--hub_token", TOKEN]
    assert "--push_to_hub needs a token: log in with `hf auth login`" in refused(command, capsys)
    assert "cannot upload probe" in (output := refused([*command, "--hub_token", "hf_other"], capsys))
    assert "(Invalid user token.)" in output and "hf_other" not in output
    assert "has blanks or characters outside ASCII" in refused([*command, "--hub_token", "hf_two\nlines"], capsys)
    assert "Repo id must" in refused([*with_token, "--hub_model_id", "no/such/name"], capsys)
    hub.role = "read"
    assert "(this token may only read); nothing was trained" in refused(with_token, capsys)
    hub.role, hub.refused = "write", ("repos/create", "models/")
    assert "403" in refused(with_token, capsys)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "cannot upload probe to http://127.0.0.1:9 (" in refused(with_token, capsys)
    assert not list(tmp_path.iterdir()) and not hub.repositories


def test_failed_upload_keeps_the_finished_run(
    command: list[str], hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refused = ("/commit/",)
    words, folder = [*command, "--hub_token", TOKEN], tmp_path / "logs" / "probe" / "adapter"
    assert main_stage1(words) == 69
    output = capsys.readouterr().err
    assert f"the run is finished and saved, but {folder} was not uploaded to someone/probe (" in output
    assert f"repeat the command, or run `hf upload someone/probe {folder}`" in output and TOKEN not in output
    load_adapter(folder)
    hub.refused = ()
    assert main_stage1(words) == 0
    assert "adapter.safetensors" in hub.repositories["someone/probe"]


def test_run_without_upload_sends_no_requests(command: list[str], hub: FakeHub) -> None:
    assert main_stage1(command[:-1]) == 0
    assert hub.asked == []


@pytest.mark.parametrize("words", [["--hub_token", TOKEN], ["--hub_model_id", "x"]], ids=["token", "name"])
def test_upload_flags_without_push_to_hub_are_refused(
    words: list[str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = refused([*command[:-1], *words], capsys)
    assert f"{words[0]} has no effect without --push_to_hub" in output and TOKEN not in output
