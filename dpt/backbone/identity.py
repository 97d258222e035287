"""Which model a folder holds: a hash that a mirror, or a copy saved by another library version, shares.

It covers the tensors as stored, the config keys that change what the model computes, and the tokenizer's vocabulary.
File names, shards, metadata, library versions and keys at their defaults do not count.

Hashes of large files are remembered in `$DPT_CACHE_DIR`, or `dpt` in `$XDG_CACHE_HOME` or `~/.cache`. A memo is used
only while size and modification time of every file are those it was made for; one that is missing or damaged costs
only time.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from dpt.backbone import loading
from dpt.backbone.base import Backbone
from dpt.backbone.folder import FLOW_SCHEDULER, SCHEDULER, TOKENIZER, Component, ModelFolder
from dpt.errors import UserError
from dpt.files import atomic_file
from dpt.untrusted import parse_json

SETTLED = 2.0
"""Seconds since its last change after which a file's size and time tell its content."""


def remembered_hash(folder: Path, key: str, files: Sequence[Path], compute: Callable[[], str]) -> str:
    """A hash of these files of a folder, computed only if one changed in size or modification time since."""
    memo = _memo_file(folder)
    before = _stamps(files)
    known = _read_memo(memo)
    entry = known.get(key)
    if isinstance(entry, dict) and entry.get("files") == before and isinstance(entry.get("sha256"), str):
        return str(entry["sha256"])
    settled = all(time.time() - stamp[2] / 1e9 > SETTLED for stamp in before)
    digest = compute()
    if settled and _stamps(files) == before:
        _write_memo(memo, {**known, key: {"files": before, "sha256": digest}})
    return digest


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    stats = [(file, file.stat()) for file in files]
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _memo_file(folder: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpt"
    root = Path(os.environ.get("DPT_CACHE_DIR") or cache)
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return root / "model-hashes" / f"{where[:32]}.json"


def _read_memo(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_memo(file: Path, content: Mapping[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as work:
            work.write_text(json.dumps(content), encoding="utf-8")
    except (OSError, UserError):
        return  # a memo that cannot be written only costs the time to hash again


_CLIP_DEFAULTS = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "use_attention_mask": False,
}

_T5_DEFAULTS = {
    "d_kv": 64,
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-6,
    "num_heads": 8,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
}

_TEXT_DEFAULTS = {
    "CLIPTextModel": _CLIP_DEFAULTS,
    "CLIPTextModelWithProjection": _CLIP_DEFAULTS,
    "T5EncoderModel": _T5_DEFAULTS,
    "UMT5EncoderModel": {**_T5_DEFAULTS, "feed_forward_proj": "gated-gelu"},
}

_SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "clip_sample": None,
    "set_alpha_to_one": None,
}

_FLOW_SOLVER_DEFAULTS = {"prediction_type": "epsilon", "use_flow_sigmas": False, "flow_shift": 1.0}
"""Of solvers that know other schedules too."""

# How older versions of the libraries name the same tensors.
_RENAMED = (
    ("text_model.", ""),
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)


def model_hash(folder: ModelFolder, *components: Component) -> str:
    """SHA-256 of these components, or of the whole model. Remembered in the user's cache folder."""
    digest, chosen = hashlib.sha256(), sorted(components or folder.components, key=lambda c: c.name)
    for component in chosen:
        files = folder.loaded_files(component)
        own = folder.component(component)
        where = folder.path if own.parent == folder.path else own  # another VAE than the model's
        part = remembered_hash(where, component.name, files, lambda c=component: _component_hash(folder, c))  # type: ignore[misc]
        digest.update(f"{component.name}\0{part}\0".encode())
    if any(c.is_text_encoder for c in chosen) and not folder.option("force_zeros_for_empty_prompt", default=True):
        digest.update(b"the empty prompt is encoded")
    return digest.hexdigest()


def file_hash(folder: ModelFolder, *components: Component) -> str:
    """SHA-256 over the names and bytes of the files: how versions before 0.2 identified a model."""
    chosen = sorted(components or folder.components, key=lambda c: c.name)
    # The tokenizer's extra files came last.
    files = [file for c in chosen for file in folder.loaded_files(c)[: 1 + len(folder.weights(c))]]
    if TOKENIZER in chosen:
        files += folder.loaded_files(TOKENIZER)[1:]
    key = " ".join(("files", *(c.name for c in chosen)))
    return remembered_hash(folder.path, key, files, lambda: _hash_files(folder.path, files))


def is_model(recorded: str, folder: ModelFolder, *components: Component) -> bool:
    """Whether a recorded hash, new or old, is that of this model."""
    return recorded in (model_hash(folder, *components), "") or recorded == file_hash(folder, *components)


def hash_as_recorded(recorded: Any, folder: ModelFolder, *components: Component) -> str:
    """This model's hash, in the form that a record has it: to compare with records of earlier versions."""
    current = model_hash(folder, *components)
    return recorded if recorded not in (current, None, "") and recorded == file_hash(folder, *components) else current


class BaseRecord(Protocol):
    """What a checkpoint records about the model it was trained on."""

    @property
    def base(self) -> str: ...

    @property
    def base_hash(self) -> str: ...


def check_base(backbone: Backbone, record: BaseRecord, trained: str, allow_other_base: bool = False) -> None:
    """Refuse, or warn of, a checkpoint that was trained on another model. `trained` begins the sentence."""
    if backbone.is_model(record.base_hash):
        return
    sentence = (
        f"{trained} another model, {record.base or 'which has no name'} "
        f"(its hash is {record.base_hash[:12]}, that of this one {backbone.model_hash[:12]})"
    )
    if not allow_other_base:
        raise UserError(f"{sentence}. If you know that it fits this one, pass --allow_other_base")
    warnings.warn(f"{sentence}: used all the same, because of --allow_other_base", stacklevel=3)


def _component_hash(folder: ModelFolder, component: Component) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps(_output_config(folder, component), sort_keys=True).encode())
    for name, file, key in sorted(_tensors(folder.weights(component))):
        with safe_open(file, framework="pt") as tensors:
            tensor = tensors.get_tensor(key).contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _tensors(files: Iterable[Path]) -> Iterable[tuple[str, Path, str]]:
    """(name today, file, name in the file) of each tensor that the library loads."""
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            keys = list(tensors.keys())
        for key in keys:
            name = key
            for old, new in _RENAMED:
                name = name.removeprefix(old) if not new else name.replace(old, new)
            if not name.endswith(loading.COMPUTED):
                yield name, file, key


def _output_config(folder: ModelFolder, component: Component) -> dict[str, Any]:
    """The config keys that change what a component computes and differ from their defaults."""
    if component.is_tokenizer:
        return _tokenizer_content(folder, component)
    config = folder.config(component)
    if component is SCHEDULER:
        return _without_defaults(config, _SCHEDULER_DEFAULTS)
    if component is FLOW_SCHEDULER:
        defaults = _init_defaults("FlowMatchEulerDiscreteScheduler")
        return _without_defaults(config, {**defaults, **_FLOW_SOLVER_DEFAULTS})
    class_name = component.classes[0]
    return _without_defaults(config, _TEXT_DEFAULTS.get(class_name) or _init_defaults(class_name))


def _init_defaults(class_name: str) -> dict[str, Any]:
    parameters = inspect.signature(loading.library_class("diffusers", class_name).__init__).parameters
    return {name: p.default for name, p in parameters.items() if name != "self"}


def _without_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: _plain(config[key]) for key in defaults if key in config}
    return {key: value for key, value in plain.items() if value != _plain(defaults[key])}


def _plain(value: Any) -> Any:
    """Tuples as lists and whole floats as integers, so that equal values are written alike."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _tokenizer_content(folder: ModelFolder, component: Component) -> dict[str, Any]:
    """What turns text into ids, whichever files it is stored in."""
    tokenizer = loading.load_tokenizer(folder, component)
    model = parse_json(tokenizer.backend_tokenizer.to_str())["model"]
    scores = model["vocab"] if isinstance(model.get("vocab"), list) else None  # of pieces, in T5's
    return {
        **({} if scores is None else {"scores": scores}),
        "vocab": tokenizer.get_vocab(),
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", ())],
        "length": tokenizer.model_max_length,
        "special": [tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token],
    }


def _hash_files(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
