"""The training commands on the smallest model, in one or several processes."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 8
SHAPE = shlex.split(
    "--unet_feature up0 --hidden_dim 16 --nheads 2 --dim_feedforward 32 --num_queries_matching 3 --num_queries_rec 5 "
    "--dropout 0 --val_batch_size 4 --validation_scenes 4"
)
COURSE = shlex.split(
    f"--max_train_steps {STEPS} --checkpointing_steps 2 --validation_steps 4 --logging_steps 1 --ema_decay 0.9 "
    "--lr_scheduler cosine"
)
LORA = shlex.split("--lora_rank 2")


def words(stage: int, model: Path, root: Path, batch: int = 2) -> list[str]:
    where = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(root)]
    return [*where, *SHAPE, *COURSE, *(LORA if stage == 2 else []), "--train_batch_size", str(batch)]


def script(stage: int) -> str:
    return str(ROOT / f"train_stage{stage}.py")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(processes: int = 2, *more: str) -> list[str]:
    own = [f"--nproc_per_node={processes}", *(more or (f"--master_port={free_port()}",))]
    return [sys.executable, "-m", "torch.distributed.run", *own]


def on_the_cpu() -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def start(command: Sequence[str], output: Path, **environment: str) -> subprocess.Popen[bytes]:
    with output.open("wb") as out:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env={**on_the_cpu(), **environment}
        )


def start_by_hand(
    module: Sequence[str], ranks: int, folder: Path, instead: Mapping[int, Mapping[str, str]] | None = None
) -> list[subprocess.Popen[bytes]]:
    """Start the ranks without a launcher, which would end them all when one fails.

    `instead`: for a rank, words of the command line to replace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, replaced = str(free_port()), instead or {}
    return [
        start([sys.executable, *(replaced.get(rank, {}).get(word, word) for word in module)],
              folder / f"output-{rank}.txt",
              RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
              MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(ranks)
    ]  # fmt: skip
