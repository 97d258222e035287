"""The reader: practice pictures, targets, output, folder, training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpt.backbone.rng import SampleRNG
from dpt.claims.facts import Box, overlap
from dpt.claims.judge import DetectConfig
from dpt.cli.train.reader import main as train_reader
from dpt.data.scenes.render import render
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.detect.accuracy import count_detections, open_vae
from dpt.detect.oracle.oracle import Oracle
from dpt.detect.reader import RECORD
from dpt.detect.reader.detector import (
    WEIGHTS,
    Mark,
    Reader,
    ReaderConfig,
    ReaderNetwork,
    ReaderOutput,
    open_reader,
    read_output,
    save_reader,
    targets,
)
from dpt.detect.reader.practice import PracticeStream
from dpt.detect.registry import open_detector, reads_colours
from dpt.detect.test_images import half_erased, pure_noise
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.training.engine.loop import Loop, run_task
from dpt.training.engine.run_folder import RunConfig
from dpt.training.engine.settings import TrainSettings
from dpt.training.tasks.reader import ReaderTask

TINY = ReaderConfig(width=8, blocks=1)

ANY = DetectConfig("", 0.0)


def tiny_task(seed: int = 0, vae: object = None) -> ReaderTask:
    torch.manual_seed(seed)
    return ReaderTask(ReaderNetwork(TINY), vae, PracticeStream(TINY, seed, "validation"), 8)


def test_a_practice_picture_is_a_function_of_seed_and_position() -> None:
    first, again, other = (PracticeStream(TINY, seed)[5].picture for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image) and first.marks == again.marks
    assert not np.array_equal(first.image, other.image)
    apart = PracticeStream(TINY, 3, "validation")[5].picture
    assert not np.array_equal(first.image, apart.image)


def test_practice_pictures_show_what_they_say() -> None:
    """The oracle, which has no part in them, reads the same objects in tidy ones, and few spoilt ones."""
    stream, oracle = PracticeStream(TINY, 11), Oracle(POCKET_WORLD)
    named = agreed = spoilt = refused = 0
    for picture in (stream[k].picture for k in range(120)):
        found = oracle.detect([picture.image])[0]
        for mark in picture.marks:
            same = next((d for d in found.objects if overlap(d.box, mark.box) > 0.6), None)
            if mark.readable == 1 and same:
                named += 1
                agreed += (same.label, same.colour) == (TINY.shapes[mark.shape], TINY.colours[mark.colour])
            spoilt += mark.readable == 0
            refused += mark.readable == 0 and same is None
    assert named > 100 and agreed / named > 0.98
    assert spoilt > 20 and refused / spoilt > 0.8


def test_perfect_output_is_read_as_the_marks() -> None:
    marks = [Mark(Box(4.5, 6, 25, 27.5), 1, 2, 1), Mark(Box(38, 40, 59, 60), readable=0)]
    aim = targets([marks, []], TINY, [False, True])
    centres = (torch.arange(TINY.cells) + 0.5) * 4
    x, y = centres[None, None, :], centres[None, :, None]
    edges = torch.stack([x - aim.corners[:, 0], y - aim.corners[:, 1], aim.corners[:, 2] - x, aim.corners[:, 3] - y], 1)
    one_hot = [
        torch.nn.functional.one_hot(labels.clamp(min=0), count).movedim(-1, 1).float() * 20
        for labels, count in ((aim.shapes, 4), (aim.colours, 6))
    ]
    output = ReaderOutput((aim.present - 0.9) * 99, (aim.readable - 0.5) * 99, edges, *one_hot)
    scene, texture = read_output(output, TINY)
    (found,) = scene.objects
    assert (found.label, found.colour, found.size) == (TINY.shapes[1], TINY.colours[2], "large")
    assert overlap(found.box, marks[0].box) > 0.99 and found.confidence > 0.99
    (region,) = scene.unreadable
    assert overlap(region.box, marks[1].box) > 0.99 and "sure" in region.why
    assert texture.unreadable and not texture.objects


def test_what_is_not_sure_is_unreadable_and_of_two_on_one_place_the_better_stays() -> None:
    cells = TINY.cells
    present, readable = torch.full((1, cells, cells), -9.0), torch.full((1, cells, cells), 9.0)
    present[0, 8, 8], present[0, 8, 10] = 4.0, 3.0
    edges = torch.full((1, 4, cells, cells), 10.0)
    edges[0, 0, 8, 10], edges[0, 2, 8, 10] = 18.0, 2.0
    shapes, colours = torch.zeros(1, 4, cells, cells), torch.zeros(1, 6, cells, cells)
    shapes[:, 0], colours[:, 0] = 9.0, 9.0
    sure = read_output(ReaderOutput(present, readable, edges, shapes, colours), TINY)[0]
    assert len(sure.objects) == 1 and not sure.unreadable
    shapes[:, 1] = 9.0
    doubtful = read_output(ReaderOutput(present, readable, edges, shapes, colours), TINY)[0]
    assert not doubtful.objects and "a shape between two" in doubtful.unreadable[0].why


def test_a_folder_is_opened_as_it_was_saved_or_refused_in_a_sentence(tmp_path: Path) -> None:
    network = tiny_task().network.eval()
    save_reader(network, tmp_path / "reader")
    reader = open_reader(tmp_path / "reader", "cpu")
    assert all(
        torch.equal(a.half(), b.half()) for a, b in zip(network.parameters(), reader.network.parameters(), strict=True)
    )
    opened = open_detector(str(tmp_path / "reader"), ANY, device="cpu")
    assert isinstance(opened, Reader) and opened.identity == reader.identity and opened.classes == TINY.shapes
    assert reads_colours("reader") and reads_colours(str(tmp_path / "reader")) and not reads_colours("owlv2")
    with pytest.raises(UserError, match="64 x 64 pixels, not 32 x 64 x 3"):
        reader.detect([np.zeros((32, 64, 3), np.uint8)])
    with pytest.raises(UserError, match="there is no reader"):
        open_reader(tmp_path / "nowhere")
    weights, record = tmp_path / "reader" / WEIGHTS, tmp_path / "reader" / RECORD
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "config": {**content["config"], "width": 16}}))
    with pytest.raises(UserError, match="do not fit the reader"):
        open_reader(tmp_path / "reader")
    record.write_text(json.dumps({**content, "config": {**content["config"], "width": 10**9}}))
    with pytest.raises(UserError, match="1024"):
        open_reader(tmp_path / "reader")
    record.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(UserError, match="format 2"):
        open_reader(tmp_path / "reader")
    record.write_text(json.dumps(content))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged"):
        open_reader(tmp_path / "reader")


def run(root: Path, steps: int, task: ReaderTask, **options: object) -> ReaderTask:
    settings = TrainSettings(steps, 4, learning_rate=3e-3, seed=5, checkpointing_steps=2, **options)  # type: ignore[arg-type]
    run_task(task, PracticeStream(TINY, 5), settings, root, RunConfig({"task": "test"}))
    return task


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 4, tiny_task())
    run(tmp_path / "cut", 2, tiny_task())
    rest = run(tmp_path / "cut", 4, tiny_task(1))
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, rest.network.state_dict()[name]), name


def test_losses_fall_and_two_halves_of_a_batch_have_its_gradient(tmp_path: Path) -> None:
    task = tiny_task()
    (same,) = PracticeStream(TINY, 5).batches([range(8)])
    optimizer = torch.optim.Adam(task.network.parameters(), 0.01)
    totals = []
    for _ in range(25):
        losses = task.losses(same, SampleRNG(0, range(8)), torch.tensor(float(task.count(same))))
        total = torch.stack([task.weights[name] * value for name, value in losses.items()]).sum()
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert totals[-1] < 0.6 * totals[0]

    def gradient(batch: int, rank: int, count: int, marks: float) -> torch.Tensor:
        loop = Loop(
            task,
            PracticeStream(TINY, 5),
            TrainSettings(1, batch),
            tmp_path / "x",
            RunConfig({}),
            Processes(rank, count),
        )
        (data,) = PracticeStream(TINY, 5).batches([loop.plan.positions(0, 0)])
        task.network.zero_grad()
        losses = task.losses(data, SampleRNG(0, range(batch)), torch.tensor(marks))
        torch.stack([task.weights[name] * value for name, value in losses.items()]).sum().backward()
        return torch.cat([p.grad.flatten() for p in task.network.parameters() if p.grad is not None])

    halves = gradient(3, 0, 2, 5.0) + gradient(3, 1, 2, 5.0)
    torch.testing.assert_close(halves / 2, gradient(6, 0, 1, 10.0), atol=1e-5, rtol=1e-3)


def test_every_sixteenth_picture_makes_the_round_trip(tmp_path: Path) -> None:
    task = tiny_task(vae=open_vae(Path(__file__).parents[2] / "ckpt/pocket"))
    (batch,) = PracticeStream(TINY, 5).batches([range(14, 18)])
    changed = task._round_trip(batch.pixels, SampleRNG(0, range(14, 18)))
    differs = [not torch.equal(a, b) for a, b in zip(changed, batch.pixels, strict=True)]
    assert differs == [False, False, True, False]
    assert (changed[2] - batch.pixels[2]).abs().mean() < 0.2


def test_one_command_trains_resumes_and_writes_a_detector(tmp_path: Path) -> None:
    words = ["--width", "8", "--blocks", "1", "--vae", "none", "--train_batch_size", "2", "--validation_pictures", "2"]
    words += ["--mixed_precision", "no", "--report_to", "none"]
    words += ["--output_dir", str(tmp_path), "--run_name", "r"]
    assert train_reader([*words, "--max_train_steps", "1", "--lr_scheduler", "constant"]) == 0
    assert train_reader([*words, "--max_train_steps", "2", "--lr_scheduler", "constant"]) == 0
    assert isinstance(open_detector(str(tmp_path / "r" / "reader"), ANY), Reader)
    assert train_reader([*words, "--max_train_steps", "2", "--validation_pictures", "0"]) == 2
    assert train_reader([*words, "--width", "13", "--run_name", "s"]) == 2


def test_the_shipped_reader_reads_scenes_and_refuses_what_has_no_name() -> None:
    reader = open_detector("reader", ANY)
    world = replace(POCKET_WORLD, held_out_kinds=())
    scenes = [make_scene(40_001, index, world) for index in range(120)]
    counts = count_detections(scenes, reader.detect([render(scene) for scene in scenes]))
    assert counts.exact >= 118 and counts.wrong <= 1
    for spoilt in (half_erased, pure_noise):
        found = reader.detect([spoilt(3, index, POCKET_WORLD) for index in range(20)])
        assert sum(bool(image.objects) for image in found) <= 1
