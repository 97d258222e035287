from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpt.claims.words import vocabulary
from dpt.data.scenes.world import POCKET_WORLD
from dpt.errors import UserError
from dpt.pocket.build import text_tower
from dpt.pocket.clip import build_clip
from dpt.pocket.recipe import TextRecipe, UNetRecipe
from dpt.pocket.tokenizer import build_tokenizer
from dpt.pocket.unet import UNetStage
from dpt.pocket.workers import Workers, launch

BATCH = 6
ROOT = Path(__file__).parent.parent.parent


def tiny_stage() -> UNetStage:
    torch.manual_seed(0)
    text = TextRecipe(width=16, layers=1, heads=2, image_layers=1, patch=16)
    tokenizer = build_tokenizer(vocabulary(), text.length)
    recipe = UNetRecipe(channels=(16, 16, 32), head_width=16)
    latents = torch.randn(64, 4, 16, 16)
    return UNetStage(recipe, POCKET_WORLD, 3, latents, text_tower(build_clip(text, tokenizer)), tokenizer)


def write_gradients(folder: Path, workers: Workers) -> None:
    torch.set_num_threads(1)
    stage = tiny_stage()
    stage.losses(5, workers.rows(BATCH))["loss"].backward()  # type: ignore[no-untyped-call]
    named = {name: p.grad for name, p in stage.model.named_parameters() if p.grad is not None}
    left = workers.average(list(named.values()), leave=workers.rank == 1)
    assert left == (workers.count > 1), "one who leaves takes all along"
    if workers.first:
        save_file(named, folder / f"{workers.count}.safetensors")


def test_shared_rows_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    for count in (1, 2):
        launch(count, partial(write_gradients, tmp_path))
    whole = load_file(tmp_path / "1.safetensors")
    shared = load_file(tmp_path / "2.safetensors")
    for name, gradient in whole.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-4, atol=1e-6)


def test_rows_cover_the_batch_once() -> None:
    assert [row for rank in range(3) for row in Workers(rank, 3).rows(6)] == list(range(6))
    with pytest.raises(UserError, match="cannot be shared evenly"):
        Workers(0, 4).rows(6)


def sleep_for_ever(folder: Path, workers: Workers) -> None:
    (folder / f"{os.getpid()}.pid").touch()
    workers.wait()
    time.sleep(600)


LAUNCH = """
import sys
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from dpt.pocket.workers import launch
from tests.pocket.test_workers import sleep_for_ever
if __name__ == "__main__":
    launch(2, partial(sleep_for_ever, Path(sys.argv[1])))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while len(pids := [int(file.stem) for file in tmp_path.glob("*.pid")]) < 2:
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)
