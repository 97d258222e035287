"""`train_stage1.py`: the published flags, refusals, and whole runs on a tiny model."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpt.adapter.io import load_adapter
from dpt.cli.common.console import flag_names
from dpt.cli.prefer.tune import HpsOptions
from dpt.cli.train.options import OptimisationOptions
from dpt.cli.train.setup import NOT_COMPARED, OPTIONAL, run_config, settings_for
from dpt.cli.train.stages import Stage1Options, Stage2Options, main_stage1
from dpt.records import to_flat
from dpt.training.engine.observers import EXIT_STOPPED
from dpt.training.tasks.discriminative import GROUNDING_LOSSES, MATCHING_LOSSES
from tests.training import tiny_stage1
from tests.training.children import as_main, in_a_child, ranks

ROOT = Path(__file__).parents[2]
SMALL = shlex.split(
    "--unet_feature up0 --hidden_dim 16 --nheads 2 --dim_feedforward 32 --num_queries_matching 3 --num_queries_rec 5 "
    "--train_batch_size 2 --val_batch_size 4 --validation_scenes 4 --logging_steps 1 --max_train_steps 2"
)
PUBLISHED_TEXT = """
    pretrained_model_name_or_path revision dataset_name dataset_config_name dataset_script image_column caption_column
    validation_prompts num_validation_images validation_epochs max_train_samples output_dir cache_dir seed resolution
    center_crop random_flip train_batch_size val_batch_size num_train_epochs max_train_steps
    gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps snr_gamma
    use_8bit_adam allow_tf32 dataloader_num_workers adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm
    push_to_hub hub_token hub_model_id prediction_type logging_dir mixed_precision report_to local_rank
    checkpointing_steps checkpoints_total_limit resume_from_checkpoint enable_xformers_memory_efficient_attention
    noise_offset run_name neg_prob img_root hard_neg relativistic unhinged neg_img mixed_neg position_embedding
    enc_layers dec_layers dim_feedforward hidden_dim nheads dropout num_queries_matching num_queries_rec pre_norm
    fix_timestep transformer_decoder_only reset_optimizer combine_datasets_val no_freeze_text_encoder
    text_encoder_type no_contrastive_align_loss contrastive_loss_hdim masks no_detection val_fullset dataset_name_val
    dataset_name_matching set_loss temperature_NCE set_cost_class set_cost_bbox set_cost_giou ce_loss_coef
    bbox_loss_coef giou_loss_coef contrastive_align_loss_coef i2t_loss_coef t2i_loss_coef eos_coef unet_feature
"""
PUBLISHED = set(PUBLISHED_TEXT.split())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stage1.model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def command(model: Path, tmp_path: Path) -> list[str]:
    return ["--pretrained_model_name_or_path", str(model), *SMALL, "--output_dir", str(tmp_path / "logs")]


def in_a_process(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore


def through_the_launcher(script: str, flags: list[str]) -> str:
    words = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision=fp16", "--num_processes=1", "--cpu"]
    done = in_a_process([*words, str(ROOT / f"{script}.py"), *flags])
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def in_a_fork(script: str, flags: list[str]) -> str:
    """In the environment that the launcher makes for one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
        return ranks(lambda: as_main(script, *flags), count=1)


LAUNCHES = [in_a_fork, pytest.param(through_the_launcher, marks=pytest.mark.nightly)]


def refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], int] = main_stage1
) -> str:
    """The error sentence of a command."""
    capsys.readouterr()
    assert command(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_every_published_flag_is_accepted_or_named_with_a_reason() -> None:
    known, published = flag_names(Stage1Options), Stage1Options.published
    assert len(PUBLISHED) == 93
    assert known | set(published.refused) | set(published.ignored) >= PUBLISHED
    assert not known & (set(published.refused) | set(published.ignored)), "dead flags are not listed in --help"


def test_help_does_not_import_torch() -> None:
    code = "import sys; from dpt.cli.train.stages import main_stage1 as main\n"
    code += "try: main(['--help'])\nexcept SystemExit: pass\n"
    done = in_a_process([sys.executable, "-c", f"{code}sys.exit('torch' in sys.modules)"])
    assert done.returncode == 0, done.stderr


def test_dead_published_flags_are_refused_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--masks asks for segmentation" in refused(["--masks"], capsys)
    assert "--neg_prob was never read" in refused(["--neg_prob=1"], capsys)
    assert "--snr_gamma weighs the denoising loss" in refused(["--snr_gamma", "5"], capsys)
    ignored = ["--local_rank", "0", "--validation_prompts", "a star", "two", "--mask"]
    sentence = refused(ignored, capsys)
    assert "train_stage1.py has no flag --mask" in sentence, "what follows ignored flags is still read"


def test_flags_not_compared_on_resume_exist() -> None:
    options = (Stage2Options(), HpsOptions())
    assert {name for each in options for name in to_flat(each)} >= NOT_COMPARED | OPTIONAL


def test_runs_recorded_before_a_flag_existed_resume() -> None:
    def names(options: Stage1Options) -> set[str]:
        return set(run_config(options, settings_for(options, 1, 1)).values)

    assert not names(Stage1Options()) & OPTIONAL
    assert "use_8bit_adam" in names(Stage1Options(optimisation=OptimisationOptions(use_8bit_adam=True)))


def test_resume_with_another_dtype_is_refused(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The resolved dtype is compared: here the same flags on machines with and without bfloat16."""
    monkeypatch.setattr("dpt.backbone.device.cpu_supports_bfloat16", lambda: True)
    assert main_stage1([*command, "--mixed_precision", "bf16", "--max_train_steps", "1"]) == 0
    monkeypatch.setattr("dpt.backbone.device.cpu_supports_bfloat16", lambda: False)
    sentence = refused([*command, "--mixed_precision", "bf16"], capsys)
    assert "(dtype was 'torch.bfloat16' and is 'torch.float32')" in sentence


def test_flags_without_influence_on_results_do_not_block_a_resume(command: list[str], tmp_path: Path) -> None:
    """Including another spelling of the data folder's path."""
    files = ["--data_root", str(ROOT / "data" / "sample")]
    assert main_stage1([*command, *files, "--max_train_steps", "1"]) == 0
    elsewhere = tmp_path / "link"
    elsewhere.symlink_to(ROOT / "data" / "sample")
    more = ["--corrupt_budget", "3", "--validation_steps", "0", "--report_to", "none", "--logging_steps", "2"]
    assert main_stage1([*command, "--data_root", str(elsewhere), *more]) == 0
    assert (tmp_path / "logs" / "checkpoint-2").is_dir()


def test_full_disk_at_export_is_one_sentence_and_the_run_resumes(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dpt.training.engine.logging.plot_curve", full)
        sentence = refused(command, capsys)
    assert "No space left on device; the last checkpoint is complete, and the same command continues" in sentence
    assert main_stage1(command) == 0
    assert (tmp_path / "logs" / "curve.png").exists()


@pytest.mark.parametrize("launch", LAUNCHES)
def test_published_command_runs(launch: Callable[[str, list[str]], str], model: Path, tmp_path: Path) -> None:
    """With unused flags of the published command."""
    flags = f"""
        --pretrained_model_name_or_path={model} --unet_feature=up0 --run_name=probe --output_dir={tmp_path}
        --train_batch_size=1 --gradient_accumulation_steps=2 --gradient_checkpointing --max_train_steps=2
        --learning_rate=1e-04 --max_grad_norm=1 --lr_scheduler=constant --lr_warmup_steps=0 --mixed_precision=fp16
        --center_crop --random_flip --enable_xformers_memory_efficient_attention --dataloader_num_workers=1
        --checkpointing_steps=2 --validation_scenes=4 --report_to=tensorboard
    """.split()
    printed = launch("train_stage1", flags)
    assert "effective batch: 2 = 1 examples x 2 accumulated x 1 process" in printed
    assert "warning: xformers runs on GPUs only: using PyTorch's own attention" in printed
    assert (tmp_path / "probe" / "adapter" / "adapter.safetensors").exists()
    assert (tmp_path / "probe" / "checkpoint-2" / "manifest.json").exists()


def test_resume_continues_after_stop(command: list[str], tmp_path: Path) -> None:
    log, words = tmp_path / "logs" / "log.jsonl", [*command, "--validation_steps", "0", "--max_train_steps", "100000"]
    with (tmp_path / "output.txt").open("w+") as output:
        child = in_a_child(lambda: os._exit(main_stage1(words)), output.fileno())
        deadline = time.monotonic() + 200
        while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == EXIT_STOPPED == 75
        output.seek(0)
        printed = output.read()
    reached = int(re.search(r"stopped after step (\d+): run the same", printed)[1])  # type: ignore[index]
    assert (tmp_path / "logs" / f"checkpoint-{reached}" / "manifest.json").exists()
    assert main_stage1([*command, "--validation_steps", "0", "--max_train_steps", str(reached + 2)]) == 0
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, reached + 3))


def test_qformer_ckpt_initialises_the_adapter(command: list[str], tmp_path: Path) -> None:
    """Train grounding first, then all losses from the weights of that run."""
    grounding = ["--i2t_loss_coef", "0", "--t2i_loss_coef", "0", "--run_name", "first"]
    assert main_stage1([*command, *grounding]) == 0
    lines = [json.loads(line) for line in (tmp_path / "logs" / "first" / "log.jsonl").read_text().splitlines()]
    assert "ce" in lines[0] and "i2t" not in lines[0], "what weighs nothing is not computed"
    first = tmp_path / "logs" / "first"
    second = ["--run_name", "second", "--qformer_ckpt", str(first), "--learning_rate", "1e-12"]
    assert main_stage1([*command, *second]) == 0
    before, _ = load_adapter(first / "adapter")
    after, _ = load_adapter(tmp_path / "logs" / "second" / "adapter")
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, rtol=0, atol=1e-9)


def test_adapter_of_another_shape_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_stage1([*command, "--run_name", "first"]) == 0
    other = [*command, "--run_name", "second", "--qformer_ckpt", str(tmp_path / "logs" / "first")]
    assert "reads up0, not --unet_feature bottom0" in refused([*other, "--unet_feature", "bottom0"], capsys)
    assert "has num_queries_matching 3, not 2: leave" in refused([*other, "--num_queries_matching", "2"], capsys)
    nowhere = [*command, "--qformer_ckpt"]
    assert "there is no adapter nowhere" in refused([*nowhere, "nowhere"], capsys)
    assert "holds no adapter" in refused([*nowhere, str(tmp_path)], capsys)


def test_training_on_a_data_folder(command: list[str], tmp_path: Path) -> None:
    assert (
        main_stage1(
            [*command, "--data_root", str(ROOT / "data" / "sample"), "--val_fullset", "--validation_steps", "2"]
        )
        == 0
    )
    records = [json.loads(line) for line in (tmp_path / "logs" / "log.jsonl").read_text().splitlines()]
    (validation,) = [record["validation"] for record in records if "validation" in record]
    accuracies = {"itm_txt", "itm_img", "itm_overall", "rec_p1", "rec_p1_refcoco", "rec_p1_refcoco+", "rec_p1_refcocog"}
    assert validation.keys() == accuracies | {*MATCHING_LOSSES, *GROUNDING_LOSSES, "loss"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--unet_feature up7", "there is no UNet feature 'up7'; valid are bottom0"),
        ("--resume_from_checkpoint nowhere/checkpoint-3", "there is no checkpoint folder nowhere/checkpoint-3"),
        ("--data_root nowhere", "there is no data folder nowhere"),
        ("--lr_scheduler sawtooth", "--lr_scheduler is one of constant"),
        ("--train_batch_size 0", "--train_batch_size must be at least 1, not 0"),
        ("--fix_timestep 1000", "--fix_timestep is between 0 and 999, not 1000"),
        ("--hidden_dim 30", "hidden_dim must be divisible by 4"),
        ("--resolution 63", "the height must be divisible by 4, not 63"),
        ("--use_8bit_adam", "--use_8bit_adam runs on CUDA devices only"),
        ("--report_to comet", "--report_to is one of tensorboard"),
        ("--pretrained_model_name_or_path /nowhere", "/nowhere"),
    ],
)
def test_invalid_input_is_refused_in_one_sentence(
    command: list[str], words: str, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sentence in refused([*command, *words.split()], capsys)
    assert not list(tmp_path.rglob("checkpoint-*")), "nothing half-written"


def test_changed_configuration_in_the_same_folder_is_refused(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main_stage1(command) == 0
    assert "(seed was 1337 and is 2)" in refused([*command, "--seed", "2"], capsys)
    assert "(global_batch was 2 and is 4)" in refused([*command, "--gradient_accumulation_steps", "2"], capsys)
    same_batch = ["--train_batch_size", "1", "--gradient_accumulation_steps", "2", "--max_train_steps", "3"]
    assert main_stage1([*command, *same_batch]) == 0
    assert (tmp_path / "logs" / "checkpoint-3").is_dir()


def test_processes_outside_one_group_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`torchrun` on a CPU starts such processes; each would train alone in the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main_stage1(["--pretrained_model_name_or_path", str(model), "--output_dir", str(tmp_path)]) == 2
    assert "use accelerate launch --cpu" in capsys.readouterr().err


def test_gradient_accumulation_of_the_launcher_is_refused(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert "--gradient_accumulation_steps 4 is not read" in refused(command, capsys)
