"""What every LoRA file format has in common: safetensors with metadata, whole attention layers, one rank, one alpha."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import isclose, isfinite
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpt.backbone.unet_features import PROJECTIONS, block_of
from dpt.errors import UserError
from dpt.lora.config import LoraConfig
from dpt.lora.io import LoraRecord, StoredLora
from dpt.records import from_plain, to_plain
from dpt.untrusted import parse_json
from dpt.weights import read_weights, write_weights

RECORD_KEY = "dpt_lora"


def write_lora_file(
    tensors: Mapping[str, Tensor], record: LoraRecord, file: Path, metadata: Mapping[str, str], hash_key: str = ""
) -> None:
    """The record keeps a checksum of the tensors; a format that has a key of its own for it gets it there as well."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = hashlib.sha256(_payload(save(tensors))).hexdigest()
    own = json.dumps(to_plain(replace(record, base=_public(record.base), weights_sha256=digest)))
    write_weights(tensors, file, {**metadata, **({hash_key: digest} if hash_key else {}), RECORD_KEY: own})


def _public(base: str) -> str:
    """Where a model lay on the machine that trained with it is nobody else's business."""
    return Path(base).name if Path(base).is_absolute() else base


def read_lora_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. A file that dpt wrote is found out if a single bit of it has changed since."""
    tensors = read_weights(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError):
        raise UserError(f"{file} is truncated or not a safetensors file") from None
    expected = _checksum(metadata.get(RECORD_KEY, ""))
    if expected and hashlib.sha256(_payload(file.read_bytes())).hexdigest() != expected:
        raise UserError(f"{file} is damaged: its tensors are not those that were exported (their SHA-256 differs)")
    return tensors, metadata


def _checksum(record: str) -> str:
    """Whatever else is wrong with the record is found out where it is read."""
    try:
        content = parse_json(record) if record else {}
    except ValueError:
        return ""
    return str(content.get("weights_sha256", "")) if isinstance(content, dict) else ""


def _payload(file: bytes) -> bytes:
    """What follows the header, and does not depend on the metadata in it."""
    return file[8 + int.from_bytes(file[:8], "little") :]


A, B, ALPHA = "lora_A.weight", "lora_B.weight", "alpha"

_PLACE = re.compile(r"(.+)\.attentions\.(\d{1,2})\.transformer_blocks\.(\d{1,2})\.attn[12]\.(?:to_[qkv]|to_out\.0)")


Recognise = Callable[[str], tuple[str, str] | None]
"""From a format's key to the projection and which part of its addition this is (A, B, ALPHA); None if it is neither."""


def lora_from(
    named: Mapping[str, Tensor], recognise: Recognise, where: str, alpha: float | None = None, record: str = ""
) -> StoredLora:
    """The LoRA whose tensors a format names in its own way, all of them, or a sentence that says what is amiss.

    `alpha` is for formats that keep it elsewhere; without any it is as much as the rank. `record` is what dpt wrote
    about the LoRA when it exported it.
    """
    parts: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in named.items():
        found = recognise(key)
        if found is None or not (block_of(found[0]) and _PLACE.fullmatch(found[0])):
            unknown.append(key)
        elif (name := ".".join(found)) in parts:
            raise UserError(f"{where} holds {name} twice, under two names, one of which is {key}")
        else:
            parts[name] = tensor
    if unknown:
        raise UserError(f"{where} holds what no LoRA of attention layers has: {listed(unknown)}")
    alphas = {name: tensor for name, tensor in parts.items() if name.endswith(f".{ALPHA}")}
    tensors = {name: _numbers(tensor, name, where) for name, tensor in parts.items() if name not in alphas}
    rank = check_shape(tensors, where)
    strength = _one_alpha(alphas, tensors, where) if alphas else alpha
    if strength is not None and not (isfinite(strength) and strength > 0):
        raise UserError(f"{where} is not usable: the alpha of a LoRA must be positive, not {strength:g}")
    config = LoraConfig(rank, None if strength == rank else strength, blocks_of(places_in(tensors)))
    return StoredLora(_remembered(record, config, where) if record else LoraRecord(config), tensors)


def check_shape(tensors: Mapping[str, Tensor], where: str) -> int:
    """The rank, if A (rank, in) and B (out, rank) of whole attention layers are there, with one rank throughout."""
    present = places_in(tensors)
    if not present:
        raise UserError(f"{where} holds no LoRA")
    if strange := [place for place in present if not (block_of(place) and _PLACE.fullmatch(place))]:
        raise UserError(f"{where} holds what no LoRA of attention layers has: {listed(strange)}")
    wanted = [f"{place}.{matrix}" for place in expected_places(present) for matrix in (A, B)]
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise UserError(f"the LoRA in {where} is not whole: it lacks {listed(missing)}")
    ranks = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            shape = " x ".join(map(str, tensor.shape)) or "one number"
            raise UserError(f"the LoRA in {where} is not one of matrices: {name} is {shape}")
        ranks[tensor.shape[0 if name.endswith(A) else 1]].append(name)
    if len(ranks) > 1:
        examples = ", ".join(f"{rank} in {names[0]}" for rank, names in sorted(ranks.items()))
        raise UserError(f"the LoRA in {where} has more than one rank, which dpt does not know how to use: {examples}")
    if 0 in ranks:
        raise UserError(f"the LoRA in {where} is of rank 0: its matrices are empty")
    return next(iter(ranks))


def check_lora(stored: StoredLora, where: str) -> None:
    """Its tensors are a LoRA, and the one that its record speaks of."""
    rank = check_shape(stored.tensors, where)
    if rank != stored.record.config.rank:
        raise UserError(f"the LoRA in {where} has rank {rank}, and its record says {stored.record.config.rank}")


def places_in(tensors: Iterable[str]) -> list[str]:
    """The projections, in the order they come in."""
    return list(dict.fromkeys(name.removesuffix(f".{A}").removesuffix(f".{B}") for name in tensors))


def expected_places(present: Iterable[str]) -> list[str]:
    """What must be there because of what is: all projections of both attention layers, and no gap in the numbering."""
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for place in present:
        match = _PLACE.fullmatch(place)
        assert match is not None  # callers have seen to that
        block, attention, transformer = match[1], int(match[2]), int(match[3])
        counts[block][attention] = max(counts[block].get(attention, 1), transformer + 1)
    return [
        place
        for block, layers in counts.items()
        for attention in range(max(layers) + 1)
        for transformer in range(layers.get(attention, 1))
        for place in _projections(block, attention, transformer)
    ]


def _projections(block: str, attention: int, transformer: int) -> list[str]:
    layer = f"{block}.attentions.{attention}.transformer_blocks.{transformer}"
    return [f"{layer}.{attn}.{projection}" for attn in ("attn1", "attn2") for projection in PROJECTIONS]


def stable_diffusion_places() -> list[str]:
    """All of them in Stable Diffusion 1.x and 2.x."""
    down, up = [(f"down_blocks.{i}", 2) for i in range(3)], [(f"up_blocks.{i}", 3) for i in (1, 2, 3)]
    blocks = [*down, ("mid_block", 1), *up]
    return [place for block, count in blocks for i in range(count) for place in _projections(block, i, 0)]


def blocks_of(present: Iterable[str]) -> tuple[str, ...]:
    """The blocks by name; `all` if that is certain without the UNet at hand."""
    present = set(present)
    if present == set(stable_diffusion_places()):
        return ("all",)
    order = {"bottom": 0, "mid": 1, "up": 2}
    found = {block for place in present if (block := block_of(place))}
    return tuple(sorted(found, key=lambda block: (order[block.rstrip("0123456789")], block)))


def listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _numbers(tensor: Tensor, name: str, where: str) -> Tensor:
    if not tensor.is_floating_point():
        raise UserError(f"{where} is not a LoRA of floating-point numbers: {name} holds {tensor.dtype}")
    return tensor.float().contiguous()


def _one_alpha(alphas: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> float:
    missing = [name for place in places_in(tensors) if (name := f"{place}.{ALPHA}") not in alphas]
    if missing:
        raise UserError(f"{where} says the alpha of some projections only; it lacks {listed(missing)}")
    values = {name: float(tensor) if tensor.numel() == 1 else float("nan") for name, tensor in alphas.items()}
    if bad := [name for name, value in values.items() if not (isfinite(value) and value > 0)]:
        raise UserError(f"{where} has an alpha that is no positive number: {listed(bad)}")
    if len(set(values.values())) > 1:
        examples = ", ".join(f"{value:g} in {name}" for value, name in {v: n for n, v in values.items()}.items())
        raise UserError(f"{where} has more than one alpha, which dpt does not know how to use: {examples}")
    if stray := [name for name in alphas if name.removesuffix(f".{ALPHA}") not in places_in(tensors)]:
        raise UserError(f"{where} has an alpha for what it does not add to: {listed(stray)}")
    return next(iter(values.values()))


def _remembered(record: str, config: LoraConfig, where: str) -> LoraRecord:
    """What dpt wrote about the LoRA, if that agrees with what the file itself shows."""
    try:
        content = parse_json(record)
    except ValueError:
        raise UserError(f"what dpt wrote about the LoRA into {where} is not valid JSON") from None
    found = from_plain(LoraRecord, content, where)
    if found.format != 1:
        raise UserError(f"{where} was exported in format {found.format}; this version of dpt reads format 1")
    pairs = {"rank": (config.rank, found.config.rank), "alpha": (config.strength, found.config.strength)}
    for what, (now, then) in pairs.items():
        if not isclose(now, then, rel_tol=1e-6):  # alpha went through float32
            raise UserError(f"{where} contradicts itself: its {what} is {now:g}, and dpt exported it with {then:g}")
    return found
