"""A run that was stopped or killed and resumed equals the uninterrupted run bit for bit: weights, moments, log."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dpt import files
from dpt.errors import UserError
from dpt.training.engine import run_folder
from dpt.training.engine.loop import Outcome
from dpt.training.engine.run_folder import RunConfig
from tests.training.children import in_a_child
from tests.training.toy import Line, loop, same, tensors

CLOCK = ("seconds", "data_share")


def log(root: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    assert loop(root, Line(dropout=0.3)).run().finished
    return root


def assert_same_run(root: Path, uninterrupted: Path) -> None:
    assert same(tensors(root), tensors(uninterrupted))
    assert log(root) == log(uninterrupted)


@pytest.mark.parametrize("stops", [(1,), (4,), (7,), (2, 3), (5, 6, 11)], ids=str)
def test_resume_continues_after_stop(tmp_path: Path, uninterrupted: Path, stops: tuple[int, ...]) -> None:
    """Also between two log lines, and twice within one epoch of ten examples."""
    for stop in stops:
        run = loop(tmp_path, Line(dropout=0.3))
        _stop_after(run, stop)
        outcome = run.run()
        assert (outcome.step, outcome.finished) == (stop, False)
    assert loop(tmp_path, Line(dropout=0.3)).run().finished
    assert_same_run(tmp_path, uninterrupted)


def _stop_after(running: Any, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    take_step_before = running.take_step

    def take_step(micro_batches: Any) -> None:
        take_step_before(micro_batches)
        if running.step == step:
            os.kill(os.getpid(), number)

    running.take_step = take_step


@pytest.mark.parametrize("seed", range(6))
def test_resume_continues_after_kill_at_random_times(tmp_path: Path, uninterrupted: Path, seed: int) -> None:
    """The run saves after every step, so most kills happen during a save."""
    rng = random.Random(seed)
    for _ in range(3):
        child = in_a_child(lambda: loop(tmp_path, Line(dropout=0.3), checkpointing_steps=1, validation_steps=4).run())
        time.sleep(rng.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert loop(tmp_path, Line(dropout=0.3), validation_steps=4).run().finished
    assert_same_run(tmp_path, uninterrupted)
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


@pytest.mark.parametrize("module, moment", [(files, "flush"), (run_folder, "sha256"), (run_folder, "save_tensors")])
def test_resume_continues_after_kill_during_save(
    tmp_path: Path, uninterrupted: Path, module: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = getattr(module, moment), []

    def kill_on_seventh_call(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, moment, kill_on_seventh_call)
        child = in_a_child(lambda: loop(tmp_path, Line(dropout=0.3)).run())
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert loop(tmp_path, Line(dropout=0.3)).run().finished
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process_at_once(tmp_path: Path, number: signal.Signals) -> None:
    def work() -> None:
        running = loop(tmp_path)
        running.take_step = lambda micro_batches: [os.kill(os.getpid(), number) for _ in range(2)]  # type: ignore
        running.run()

    status = os.waitpid(in_a_child(work), 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number
    assert not list(tmp_path.glob("checkpoint-*"))


def test_ctrl_c_saves_and_stops(tmp_path: Path, uninterrupted: Path) -> None:
    running = loop(tmp_path, Line(dropout=0.3))
    _stop_after(running, 5, signal.SIGINT)
    assert running.run() == Outcome(5, finished=False)
    assert loop(tmp_path, Line(dropout=0.3)).run().finished
    assert_same_run(tmp_path, uninterrupted)


class StopsDuringValidation(Line):
    """A stop is requested in the middle of its first validation."""

    validated = 0

    def validate(self, part: int, parts: int, on_batch: Any) -> Any:
        self.validated += 1
        if self.validated == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            on_batch(0)
            pytest.fail("the validation was not interrupted")
        return super().validate(part, parts, on_batch)


@pytest.mark.parametrize("validation_steps", [4, 5, 12])
def test_stop_during_validation_repeats_it_on_resume(tmp_path: Path, validation_steps: int) -> None:
    """Also at the last step, and at a step whose loss is not logged."""
    changes: Any = {"validation_steps": validation_steps}
    loop(tmp_path / "whole", Line(), **changes).run()
    stopped = tmp_path / "cut"
    assert loop(stopped, StopsDuringValidation(), **changes).run() == Outcome(validation_steps, finished=False)
    assert not any("validation" in record for record in log(stopped))
    assert loop(stopped, Line(), **changes).run().finished
    assert log(stopped) == log(tmp_path / "whole")


def test_stop_is_handled_before_a_due_validation(tmp_path: Path) -> None:
    task = StopsDuringValidation()
    running = loop(tmp_path, task)
    _stop_after(running, 4)
    assert running.run() == Outcome(4, finished=False)
    assert task.validated == 0


def test_deadline_stops_the_run(tmp_path: Path) -> None:
    assert loop(tmp_path).run(until=time.time() - 1) == Outcome(1, finished=False)
    assert (tmp_path / "checkpoint-1").is_dir()


def test_finished_run_is_left_unchanged(tmp_path: Path) -> None:
    loop(tmp_path).run()
    before = log(tmp_path)
    task = Line()
    assert loop(tmp_path, task).run().finished
    assert task.seen == [] and log(tmp_path) == before


def test_damaged_newest_checkpoint_is_skipped(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = loop(tmp_path, Line(dropout=0.3))
    _stop_after(run, 9)
    run.run()
    (tmp_path / "checkpoint-9" / "weights.safetensors").write_bytes(b"short")
    loop(tmp_path, Line(dropout=0.3)).run()
    assert "warning: skipping" in capsys.readouterr().out
    assert_same_run(tmp_path, uninterrupted)


def test_explicit_checkpoint_path_has_no_fallback(tmp_path: Path) -> None:
    loop(tmp_path).run()
    (tmp_path / "checkpoint-8" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"checkpoint-8 cannot be used.*not written completely"):
        loop(tmp_path).run(resume=str(tmp_path / "checkpoint-8"))
    with pytest.raises(UserError, match=r"there is no checkpoint folder .*checkpoint-5"):
        loop(tmp_path).run(resume="checkpoint-5")


def test_resume_from_a_checkpoint_in_another_folder(tmp_path: Path, uninterrupted: Path) -> None:
    loop(tmp_path, Line(dropout=0.3)).run(resume=str(uninterrupted / "checkpoint-8"))
    assert same(tensors(tmp_path), tensors(uninterrupted))


def test_reset_optimizer_discards_the_moments(tmp_path: Path, uninterrupted: Path) -> None:
    loop(tmp_path, Line(dropout=0.3)).run(resume=str(uninterrupted / "checkpoint-8"), reset_optimizer=True)
    assert not same(tensors(tmp_path), tensors(uninterrupted))
    assert all(value == 4 for name, value in tensors(tmp_path).items() if name.endswith("|step"))


def test_changed_configuration_is_refused_and_names_the_options(tmp_path: Path) -> None:
    loop(tmp_path, config={"seed": 1, "world": "pocket"}).run()
    with pytest.raises(UserError, match="seed was 1 and is 2"):
        loop(tmp_path, config={"seed": 2, "world": "pocket"}).run()
    with pytest.raises(UserError, match="global_batch was 4 and is 8"):
        loop(tmp_path, config={"seed": 1, "world": "pocket"}, gradient_accumulation_steps=2).run()
    with pytest.raises(UserError, match=r"is a checkpoint of a run with another configuration \(seed"):
        loop(tmp_path / "other", config={"seed": 3}).run(resume=str(tmp_path / "checkpoint-4"))


def test_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    other = run_folder.save(tmp_path / "other", 3, {"weights": {}}, {"schedule": {}})
    with pytest.raises(UserError, match="is not a checkpoint of the training loop"):
        loop(tmp_path / "run").run(resume=str(other))


def test_checkpoint_with_other_shapes_is_refused(tmp_path: Path) -> None:
    loop(tmp_path / "a").run()
    wider = Line()
    wider.trained = torch.nn.Sequential(torch.nn.Linear(4, 1))
    with pytest.raises(UserError, match=r"checkpoint-12 is of another model: 0\.bias is not the same in both"):
        loop(tmp_path / "b", wider).run(resume=str(tmp_path / "a" / "checkpoint-12"))


def test_signal_to_the_process_group_still_saves(tmp_path: Path) -> None:
    """A scheduler ends a job by signalling all of its processes, data loader workers included."""

    def work() -> None:
        os.setpgrp()
        run = loop(tmp_path, max_train_steps=100_000, dataloader_num_workers=2, validation_steps=0)
        outcome = run.run()
        os._exit(75 if not outcome.finished else 1)

    child = in_a_child(work)
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint-4").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
    assert run_folder.newest_good(tmp_path) is not None


def test_leftovers_of_a_killed_process_are_removed_on_start(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    names = [".checkpoint-4.123.tmp/w", "adapter/.adapter.json.9.tmp", ".partial-weights", "adapter/.keep"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    loop(tmp_path, max_train_steps=1).run()
    hidden = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*"))
    assert hidden == ["adapter/.keep"]


def test_only_options_that_change_results_are_compared(tmp_path: Path) -> None:
    """Older records lack resolved settings and have flags that change no result."""
    recorded = {"seed": 1, "prompts": ["x"], "dtype": "torch.bfloat16"}
    same = RunConfig({"seed": 1, "dtype": "torch.bfloat16"}, frozenset({"prompts"}), frozenset({"dtype", "device"}))
    same.check_same(recorded, "a run")
    RunConfig({"seed": 1, "device": "cpu"}, frozenset({"prompts"}), frozenset({"dtype", "device"})).check_same(
        {"seed": 1}, "a run"
    )
    with pytest.raises(UserError, match=r"\(dtype was 'torch.bfloat16' and is 'torch.float32'\)"):
        RunConfig({**same.values, "dtype": "torch.float32"}, same.not_compared, same.newer).check_same(
            recorded, "a run"
        )


def test_short_run_saves_intermediate_checkpoints(tmp_path: Path) -> None:
    loop(tmp_path, checkpointing_steps=None).run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (12, 3, 6, 9)
    ]


def test_existing_checkpoints_are_not_resumed_by_accident(tmp_path: Path) -> None:
    loop(tmp_path).run()
    with pytest.raises(UserError, match="has checkpoints already"):
        loop(tmp_path).run(resume="none")
    (tmp_path / run_folder.CONFIG).unlink()
    with pytest.raises(UserError, match=r"has checkpoints but no config\.json"):
        loop(tmp_path).run()


def test_checkpoint_limit_keeps_the_newest(tmp_path: Path) -> None:
    loop(tmp_path, checkpointing_steps=2, checkpoints_total_limit=2).run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]


def test_checkpoints_contain_no_pickle(tmp_path: Path) -> None:
    loop(tmp_path).run()
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".jsonl", ".safetensors"}
