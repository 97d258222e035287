"""Likely mistakes in every command end in one sentence that names the fault and what to give instead."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from dpt.cli.main import COMMANDS, SCRIPTS, main

ALIASES = {
    "evaluate_hps", "process_diffusiondb", "generate_images", "select_training_images", "prefer tune", "ipr run",
    "download", "pocket build", "pocket diagnose", "pocket measure", "demo",
}  # fmt: skip
"""The same command under another name, a command that needs a network, an optional package, or builds the pocket."""

MISTAKES = """
txt2img --promt "a cat" | has no flag --promt, did you mean --prompt?
txt2img --prompt a red circle | 'red circle' belongs to no flag of txt2img.py: a text of several words needs quotes
txt2img --prompt | --prompt needs a value
txt2img --n_samples two | --n_samples takes INT, not 'two'; txt2img.py --help explains the flags
txt2img --dtype float | --dtype is one of bfloat16, float16, float32, not 'float', did you mean float32?
txt2img --scheduler fast | there is no scheduler 'fast'; the names are own, ddim
txt2img --prompts_file nowhere.txt | cannot read the prompts nowhere.txt
txt2img --compare --trace | --compare and --trace cannot be combined
txt2img --pretrained_model_name_or_path ckpt/pocket-stage1 | it is the result of a training, which --ckpt takes
txt2img --ckpt ckpt/pocket | it is a model, which --pretrained_model_name_or_path takes
txt2img --method nope | there is no method 'nope'
train stage1 --data_root nowhere | there is no data folder nowhere
train stage1 --data_root pictures | `dpt data from-folder pictures --out FOLDER`
train stage1 --data_root bare | or make such a folder of your own images with `dpt data from-folder`
train stage1 --max_train_steps three | --max_train_steps takes INT, not 'three'
train stage1 --config nowhere.toml | --config: there is no file nowhere.toml
train stage1 --lr_scheduler cosin | --lr_scheduler is one of constant
train stage2 --plain_lora --qformer_ckpt ckpt/pocket-stage1 | leave --qformer_ckpt out
train stage2 --sample_steps 5 | give --validation_prompts
train stage2 --data_root note.txt --plain_lora | there is no data folder note.txt: it is a file
train stage2 --keep_best loss --validation_steps 0 | --keep_best needs validations
train stage2 --pretrained_model_name_or_path nowhere | give a folder in the diffusers layout, or a hub id
train ipr --rounds 0 | --rounds is from 1 to 100
train ipr --suite nope | there is no suite or file 'nope'; the suites are
train ipr --max_train_steps -1 | --max_train_steps must be at least 1
train ipr --roundes 2 | did you mean --rounds?
train ipr --recipe sd | there is no recipe 'sd'; the recipes are sdv2, sdv2-lora, sdxl-lora
train hps | --dataset_folder is missing
train hps --dataset_folder nowhere | there is no data folder nowhere
train hps --dataset_folder empty | there is no image in empty
train hps --dataset_folder pictures --ratios 1 2 | --ratios takes FLOAT FLOAT FLOAT, not '1 2'
train hps --recipe nope | --recipe is one of align-sd, not 'nope'
compare bas | there is no method 'bas', did you mean base?
compare --prompt "a dragon" | with --detector none its images are not judged
compare --per_prompt 1000 | use `dpt bench run`
compare --detector nowhere --prompt "a red circle" | there is no detector 'nowhere': give one of oracle
compare base --outdir note.txt | choose another name
compare base,factor=1 | the options of a method follow its path: base=PATH,factor=1
info | PATH (A result's folder
info nowhere | give the folder of a finished training run, or a LoRA file
info empty | empty holds no checkpoint
info note.txt | it is truncated, not a checkpoint
info unfinished | it is a training run that is not finished; repeat its command
export ckpt/pocket-dpt | --out PATH (A new folder
export ckpt/pocket --out new | it is a model
export nowhere --out new | there is no checkpoint nowhere
export ckpt/pocket-dpt --out new --format a1111 | --format is one of diffusers, kohya, published
export ckpt/pocket-dpt --out pictures | is not an empty folder; nothing was written
bench run | name the methods to run: any of base
bench run base --suite nope | there is no suite 'nope'; the suites are
bench run base --suite geneval | use geneval=FILE
bench run base --categories colour | the categories are single
bench run base --detector nowhere --prompts 1 | there is no detector 'nowhere'
bench report | PATH (The output folder of `dpt bench run`, or of `dpt bench score`) is missing; dpt bench report --help
bench report nowhere | as `dpt bench run --out` writes it
bench report note.txt | note.txt is not the folder of a benchmark
bench report empty --budget_mb 0 | --budget_mb must be above 0
bench report empty --encoder x | it has no bench.json
bench score empty --out new | pass --detector to judge again
bench score empty --out empty --detector oracle | choose another --out
bench score nowhere --out new --detector oracle | is not the folder of a benchmark
bench score empty --detector oracle | --out PATH (Folder for the results
bench score empty --out new --colours ckpt/pocket/clip --clip ckpt/pocket/clip | --colours needs --detector
bench diff empty | PATH (The other folder) is missing
bench diff empty empty | are the same folder
bench diff nowhere empty | neither a benchmark of `dpt bench run` nor a report
bench diff note.txt empty | neither a benchmark of `dpt bench run` nor a report
bench diff empty pictures --method base | has no flag --method
probe | give at least one adapter folder
probe nowhere | there is no checkpoint nowhere
probe ckpt/pocket-stage1 --num 0 | --num must be at least 1
probe ckpt/pocket-stage1 --timesteps 2000 | give one of them as --headline
probe ckpt/pocket-stage1 --timesteps early | --timesteps takes [INT [INT ...]], not 'early'
cache | PATH (The folder that holds coco/, ReC/ and ITM/) is missing
cache nowhere | there is no data folder nowhere
cache pictures | or make such a folder of your own images
cache empty --batch_size 0 | --batch_size must be at least 1
cache empty --dtype fp16 | --dtype is one of float16, float32, not 'fp16'
data check | PATH (The folder that holds
data check nowhere | there is no data folder nowhere
data check note.txt | it is a file
data check bare | `dpt data from-folder`
data check empty --deocde | did you mean --decode?
data from-folder | PATH (The folder of images and captions) and --out PATH
data from-folder nowhere --out new | there is no data folder nowhere
data from-folder empty --out new | it needs .jpg, .jpeg, .png
data from-folder bare --out new | bare/0.png has no caption: write it to 0.txt
data from-folder pictures --out new | matching needs at least 4
data prepare | is missing; dpt data prepare --help
data prepare nowhere | there is no data folder nowhere
data prepare empty | give the folder that holds them
data prepare note.txt | it is a file
data prepare pictures | of your own images
scenes export --out new | --num INT (Training scenes) is missing
scenes export --out new --num 0 | --num must be between 1 and
scenes export --out new --num ten | --num takes INT, not 'ten'
scenes export --out new --num 1 --world tiny | the worlds are full, pocket
scenes export --out note.txt --num 1 | is not an empty folder; nothing was written
scenes check --num 0 | --num must be at least 1
scenes check --world tiny | --world is one of full, pocket
scenes check --vae nowhere | --vae nowhere is not a folder
scenes check --json empty | give a file in it, as empty/oracle.json
scenes check --sede 3 | did you mean --seed?
detect train-reader --max_train_steps three | --max_train_steps takes INT, not 'three'
detect train-reader --max_train_steps 0 | --max_train_steps must be at least 1
detect train-reader --max_train_stepz 3 | did you mean --max_train_steps?
detect train-reader --lr_scheduler cosin | --lr_scheduler is one of constant
detect train-reader --config nowhere.toml | --config: there is no file nowhere.toml
detect train-reader --output_dir note.txt | or a folder above it, is a file: choose another name
sld correct pictures/0.png | --prompt STR (What the images should show) is missing
sld correct --prompt "a red circle" | give at least one image
sld correct nowhere.png --prompt "a red circle" | the image nowhere.png cannot be used: there is no such file
sld correct pictures --prompt "a red circle" | give the images in it, as pictures/*.png
sld correct pictures/0.png --prompt "a dragon" | does not understand 'a dragon'
sld correct pictures/0.png --prompt "a red circle" --llm replay | needs a file of recorded replies: --llm_model
sld edit pictures/0.png | --instruction STR is missing
sld edit pictures/0.png --instruction "make it nicer" | the rules follow such as 'remove the red circle'
sld edit nowhere.png --instruction "remove the red circle" | there is no such file
sld edit pictures/0.png --instruction "remove the red circle" --strength x | --strength takes FLOAT, not 'x'
sld edit pictures/0.png --instruction "remove the red circle" --editor paint | --editor is latents, inpaint=FOLDER
sld bench --num 0 | --num must be from 1
sld bench --num 1 --pretrained_model_name_or_path nowhere | there is no model folder 'nowhere'
sld bench --num some | --num takes INT, not 'some'
sld bench --rounds 3 | did you mean --max_rounds?
sld bench --llm gpt | --llm is one of openai, replay, rules, transformers
sld demo | --json_file PATH and --input_dir PATH and --output_dir PATH are missing
sld demo --json_file nowhere.json --input_dir pictures --output_dir new | cannot read nowhere.json
sld demo --json_file broken.json --input_dir pictures --output_dir new | broken.json is not valid JSON
sld demo --json_file list.json --input_dir pictures --output_dir new | must be an object with input_fname
sld demo --json_file list.json --input_dir pictures --output_dir new --config nowhere | cannot read the config nowhere
sld measure empty | --out PATH is missing
sld measure nowhere --out new | as `dpt bench run --out` writes it
sld measure note.txt --out new | is not the folder of a benchmark
sld measure empty --out new --policy best | --policy is one of edit, redraw, route, not 'best'
sld measure empty --out new --nums 3 | did you mean --num?
ipr prompts | --out PATH (The folder for prompts.json and held_out.json) is missing
ipr prompts --out new --suite nope | there is no suite or file 'nope'
ipr prompts --out new --suite geneval | use geneval=FILE
ipr prompts --out new --suite prompts=nowhere.txt | cannot read nowhere.txt
ipr prompts --out new --sute pocket | did you mean --suite?
ipr sample nowhere.json --out new | cannot read nowhere.json
ipr sample broken.json --out new | is not valid JSON
ipr sample list.json --out new | expected an object, got 1
ipr sample empty --out new | not a regular file but a folder
ipr sample list.json | --out PATH is missing
ipr detect | PATH (A folder of `dpt ipr sample`) and --out PATH are missing
ipr detect nowhere --out new | is not a finished folder of `dpt ipr sample`
ipr detect pictures --out new | is not a finished folder of `dpt ipr sample`
ipr detect note.txt --out new | is not a finished folder of `dpt ipr sample`
ipr detect empty --out new --detctor oracle | did you mean --detector?
ipr relabel empty --out new | --detections PATH (A folder of `dpt ipr detect`
ipr relabel nowhere --detections empty --out new | is not a finished folder of `dpt ipr detect`
ipr relabel empty --detections nowhere --out new | cannot read nowhere
ipr relabel pictures --detections pictures --out new | is not a finished folder of `dpt ipr detect`
ipr relabel empty --detections empty | --out PATH
ipr merge --out new | name the folders to merge
ipr merge nowhere --out new | is not a finished folder of `dpt ipr relabel`
ipr merge empty --out new | is not a finished folder of `dpt ipr relabel`
ipr merge pictures --out new | is not a finished folder of `dpt ipr relabel`
ipr merge empty | --out PATH is missing
ipr train pictures | --out PATH is missing
ipr train nowhere --out new | there is no data folder nowhere
ipr train empty --out new | there is no image in empty
ipr train bare --out new | write it to 0.txt
ipr train pictures --out new --max_train_steps many | --max_train_steps takes INT, not 'many'
ipr report | PATH (The folder of a run
ipr report nowhere | nor a folder of `dpt ipr detect`, nor a VISOR result file
ipr report empty | is neither a finished run
ipr report note.txt | note.txt is not valid JSON
ipr report list.json | list.json is not a JSON object
relabel pictures | --out PATH is missing
relabel nowhere --out new | there is no data folder nowhere
relabel empty --out new | there is no image in empty
relabel bare --out new | write it to 0.txt
relabel pictures --out new --unparsed skip | --unparsed is one of drop, keep, not 'skip'
prefer check | name the files to check, such as preference_train.json
prefer check nowhere.json | there is no file nowhere.json
prefer check broken.json | broken.json, line 1, is not valid JSON
prefer check list.json | expected an object, got 1
prefer check empty | not a regular file but a folder
prefer draw --prompts prompts.txt | --out FOLDER is missing
prefer draw --prompts nowhere.txt --out new | cannot read the prompts nowhere.txt
prefer draw --prompts broken.json --out new | is not valid JSON
prefer draw --prompts prompts.txt --out new --n_samples 0 | --n_samples must be at least 1
prefer draw --prompts prompts.txt --out new --pretrained_model_name_or_path nowhere | there is no model folder
prefer score --images pictures | --scorer FOLDER|HUB_ID|FILE (A classifier of `dpt prefer train`
prefer score --images nowhere --scorer ckpt/pocket/clip | there is no data folder nowhere
prefer score --images empty --scorer ckpt/pocket/clip | there is no image in empty
prefer score --images pictures --scorer nowhere | there is no model folder 'nowhere'
prefer score --images pictures --scorer note.txt | note.txt is a file, not a model folder
prefer select --scores list.json --images pictures | --out FOLDER is missing
prefer select --scores nowhere.json --images pictures --out new | write them with `dpt prefer score`
prefer select --scores broken.json --images pictures --out new | is not valid JSON
prefer select --scores list.json --images pictures --out new | expected an object, got [1, 2]
prefer select --scores list.json --images pictures --out new --weights all | --weights is one of confidence, equal
prefer synthesize | --out PATH is missing
prefer synthesize --prompts 0 --out new | --prompts must be at least 1
prefer synthesize --categories nope --out new | the categories are single
prefer synthesize --test_fraction 2 --out new | --test_fraction is between 0 and 1
prefer synthesize --out new --promts 3 | did you mean --prompts?
prefer train | --train_file is missing
prefer train --train_file nowhere.json | there is no file nowhere.json
prefer train --train_file broken.json --images pictures | is not valid JSON
prefer train --train_file list.json --images pictures | expected an object, got 1
prefer train --train_file list.json --mixed_precision fp16 | --mixed_precision is one of bf16, no, not 'fp16'
bench rum | did you mean 'dpt bench run'?
stage1 | did you mean 'dpt train stage1'?
dmo | did you mean 'dpt demo'?
"""


def rows() -> list[tuple[str, str]]:
    pairs = (line.partition(" | ") for line in MISTAKES.strip().splitlines())
    return [(words, sentence) for words, _, sentence in pairs]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: images with and without captions, and files of the wrong kind."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "pictures", "bare", "unfinished/checkpoint-5"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(3):
        for name in ("pictures", "bare"):
            Image.new("RGB", (64, 64), (255, 80 * number, 0)).save(tmp_path / name / f"{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text("a red circle")
    for name, text in (("note.txt", "hello\n"), ("prompts.txt", "a red circle\n"), ("broken.json", '{"a": ')):
        (tmp_path / name).write_text(text)
    (tmp_path / "list.json").write_text("[1, 2]")
    return tmp_path


def test_every_command_has_its_mistakes() -> None:
    counts = {
        name: sum(words == name or words.startswith(f"{name} ") for words, _ in rows())
        for name in {**COMMANDS, **SCRIPTS}
        if name not in ALIASES
    }
    assert not {name: count for name, count in counts.items() if count < 5}


def test_mistakes_end_in_a_sentence_with_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    wrong = {}
    for words, sentence in rows():
        monkeypatch.setattr(sys, "argv", ["dpt", *shlex.split(words)])
        with pytest.raises(SystemExit) as done:
            main()
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        if done.value.code != 2 or len(errors) != 1 or sentence not in errors[0]:
            wrong[words] = (done.value.code, errors)
    assert not wrong
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file in before and file.is_file()}
    assert kept == {file: time for file, time in before.items() if file.is_file()}, "no file was changed"
