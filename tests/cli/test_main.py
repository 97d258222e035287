"""The `dpt` command: groups, aliases of the scripts, suggestions, and a full disk behind stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dpt
from dpt.cli.commands.checkpoints import InfoOptions, info
from dpt.cli.main import COMMANDS, GROUPS, SCRIPTS, load, main, run
from dpt.errors import UserError
from tests.cli.test_train import SMALL
from tests.training import tiny_stage1

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


def test_help_lists_every_command(capsys: Capture) -> None:
    run([])
    overview = capsys.readouterr().out
    assert all(
        f"dpt {name} " in overview and summary in overview for name, (_, summary) in {**COMMANDS, **SCRIPTS}.items()
    )
    for group in GROUPS:
        for words in ([group], [group, "--help"]):
            run(words)
            lines = capsys.readouterr().out.splitlines()
            commands = sorted(name for name in {**COMMANDS, **SCRIPTS} if name.startswith(f"{group} "))
            assert [line.split("  ")[1] for line in lines if line.startswith("  dpt ")] == [
                f"dpt {name}" for name in commands
            ]
    run(["--version"])
    assert capsys.readouterr().out == f"dpt {dpt.__version__}\n"


def test_every_command_can_be_loaded() -> None:
    assert all(callable(load(entry)) for entry, _ in {**COMMANDS, **SCRIPTS}.values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("bench rum", "there is no command 'dpt bench rum', did you mean 'dpt bench run'?"),
        ("txt2image", "did you mean 'dpt txt2img'?"),
        ("train stage3", "there is no command 'dpt train stage3', did you mean 'dpt train stage2'?"),
        ("data", ""),
        ("zzz", "the commands are: bench diff, bench report"),
        ("bench run base --guidence_scale 3", "has no flag --guidence_scale, did you mean --guidance_scale?"),
        ("bench run base --num_inference_steps 0", "--num_timesteps must be from 1 to"),
    ],
)  # fmt: skip
def test_unknown_words_get_a_suggestion(words: str, sentence: str) -> None:
    if not sentence:
        run(words.split())
        return
    with pytest.raises(UserError) as error:
        run(words.split())
    assert sentence in str(error.value)


def test_scripts_are_also_commands(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, sentence in (
        ("txt2img --n_samples 0", "--n_samples must be between 1 and 100000, not 0"),
        ("train stage1 --val_batch_size 0", "--val_batch_size must be at least 1, not 0"),
        ("train-stage2 --val_batch_size 0", "--val_batch_size must be at least 1, not 0"),
        ("train hps", "--dataset_folder is missing: the folder of `dpt prefer select`"),
        ("train ipr --rounds 0", "--rounds is from 1 to 100, not 0"),
    ):
        monkeypatch.setattr(sys, "argv", ["dpt", *words.split()])
        with pytest.raises(SystemExit) as done:
            main()
        assert (done.value.code, capsys.readouterr().err) == (2, f"error: {sentence}\n"), words


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk_behind_stdout_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "dpt", "--version"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.startswith("error: ")


def test_info_describes_a_training_state(tmp_path: Path, capsys: Capture) -> None:
    from dpt.cli.train.stages import main_stage1

    model = tiny_stage1.model(tmp_path / "model")
    where = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(tmp_path / "run")]
    assert main_stage1([*where, *SMALL, "--validation_steps", "0", "--report_to", "none"]) == 0
    capsys.readouterr()
    info(InfoOptions(tmp_path / "run" / "checkpoint-2"))
    shown = capsys.readouterr().out
    assert "training state after step 2, to resume from; not a result" in shown and "trains   adapter (" in shown
    assert str(tmp_path / "run" / "adapter") in shown and "learning_rate" in shown
    info(InfoOptions(tmp_path / "run" / "checkpoint-2", json=True))
    assert json.loads(capsys.readouterr().out)["step"] == 2
    (tmp_path / "run" / "checkpoint-2" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json"):
        info(InfoOptions(tmp_path / "run" / "checkpoint-2"))
