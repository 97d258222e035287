"""What all LoRA file formats share: safetensors with metadata, whole attention layers, one rank, one alpha."""

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

from dpt.backbone.transformer_families import is_lora_target
from dpt.backbone.unet_features import PROJECTIONS, block_of
from dpt.errors import UserError
from dpt.lora.injection import LoraConfig, is_text_target, whole_layers
from dpt.lora.io import LoraRecord, StoredLora
from dpt.records import from_plain, to_plain
from dpt.untrusted import parse_json
from dpt.weights import check_numbers, listed, read_weights, shape, write_weights

RECORD_KEY = "dpt_lora"


def write_lora_file(
    tensors: Mapping[str, Tensor], record: LoraRecord, file: Path, metadata: Mapping[str, str], hash_key: str = ""
) -> None:
    """Write tensors and metadata; the record holds a checksum of the tensors, and so does `hash_key` if given."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = hashlib.sha256(_payload(save(tensors))).hexdigest()
    own = json.dumps(to_plain(replace(record, base=_public(record.base), weights_sha256=digest)))
    write_weights(tensors, file, {**metadata, **({hash_key: digest} if hash_key else {}), RECORD_KEY: own})


def _public(base: str) -> str:
    """The base model without the folders of the machine that trained with it."""
    return Path(base).name if Path(base).is_absolute() else base


def read_lora_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. In a file that dpt wrote, a single changed bit is noticed."""
    tensors = read_weights(file)
    try:
        with safe_open(file, framework="pt") as content:
            metadata = dict(content.metadata() or {})
    except (SafetensorError, OSError):
        raise UserError(f"{file} is truncated or not a safetensors file") from None
    expected = _checksum(metadata.get(RECORD_KEY, ""))
    if expected and hashlib.sha256(_payload(file.read_bytes())).hexdigest() != expected:
        raise UserError(f"{file} is damaged: its tensors are not those that were exported (their SHA-256 differs)")
    return tensors, metadata


def _checksum(record: str) -> str:
    """Empty for a record that is broken in any way: reading it later says how."""
    try:
        content = parse_json(record) if record else {}
    except ValueError:
        return ""
    return str(content.get("weights_sha256", "")) if isinstance(content, dict) else ""


def _payload(file: bytes) -> bytes:
    """The tensors' bytes, which do not depend on the metadata in the header before them."""
    return file[8 + int.from_bytes(file[:8], "little") :]


A, B, ALPHA = "lora_A.weight", "lora_B.weight", "alpha"

_TARGET = re.compile(r"(.+)\.attentions\.(\d{1,2})\.transformer_blocks\.(\d{1,2})\.attn[12]\.(?:to_[qkv]|to_out\.0)")


Recognise = Callable[[str], tuple[str, str] | None]
"""From a format's key to the module and the part of its addition (A, B, ALPHA); None for any other key."""


def lora_from(
    named: Mapping[str, Tensor], recognise: Recognise, where: str, alpha: float | None = None, record: str = ""
) -> StoredLora:
    """The LoRA in a file of another format; all its tensors are used, or a UserError says what is wrong.

    `alpha` is for formats that keep it outside the tensors; without any it equals the rank. `record` is what dpt
    wrote about the LoRA when it exported it.
    """
    parts: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in named.items():
        recognised = recognise(key)
        if recognised is None or not _is_target(recognised[0]):
            unknown.append(key)
        elif (name := ".".join(recognised)) in parts:
            raise UserError(f"{where} holds {name} twice, under two names, one of which is {key}")
        else:
            parts[name] = tensor
    if unknown:
        raise UserError(f"{where} holds what no LoRA of attention layers has: {listed(unknown)}")
    if parts and all(is_text_target(name.rpartition(".lora_")[0] or name.removesuffix(f".{ALPHA}")) for name in parts):
        raise UserError(f"{where} changes text encoders only, and dpt uses a LoRA that changes the network too")
    alphas = {name: tensor for name, tensor in parts.items() if name.endswith(f".{ALPHA}")}
    tensors = {name: tensor for name, tensor in parts.items() if name not in alphas}
    check_numbers(tensors, where)
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    rank = check_shape(tensors, where)
    resolved = _single_alpha(alphas, tensors, where) if alphas else alpha
    try:
        targets = targets_in(tensors)
        texts = any(map(is_text_target, targets))
        config = LoraConfig(rank, None if resolved == rank else resolved, blocks_of(targets), texts)
    except UserError as error:
        raise UserError(f"{where} cannot be used: {error}") from None
    if record:
        return StoredLora(_exported_record(record, config, where), tensors)
    return StoredLora(LoraRecord(config), tensors, blocks_recorded=False)


def check_shape(tensors: Mapping[str, Tensor], where: str) -> int:
    """The rank, if the tensors are A (rank, in) and B (out, rank) of whole attention layers, with one rank."""
    present = targets_in(tensors)
    if not present:
        raise UserError(f"{where} holds no LoRA")
    if unknown := [target for target in present if not _is_target(target)]:
        raise UserError(f"{where} holds what no LoRA of attention layers has: {listed(unknown)}")
    if any(map(is_lora_target, present)) and not of_transformer(present):
        raise UserError(f"{where} holds the LoRA of a transformer and that of a UNet")
    # Which projections a transformer has shows only on the model itself, when the LoRA is loaded into it.
    texts = [target for target in present if is_text_target(target)]
    networks = [target for target in present if not is_text_target(target)]
    whole = [*(networks if of_transformer(networks) else expected_targets(networks)), *whole_layers(texts)]
    expected = [f"{target}.{matrix}" for target in whole for matrix in (A, B)]
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise UserError(f"the LoRA in {where} is not whole: it lacks {listed(missing)}")
    ranks = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            raise UserError(f"the LoRA in {where} is not one of matrices: {name} is {shape(tensor)}")
        ranks[tensor.shape[0 if name.endswith(A) else 1]].append(name)
    if len(ranks) > 1:
        examples = ", ".join(f"{rank} in {names[0]}" for rank, names in sorted(ranks.items()))
        raise UserError(f"the LoRA in {where} has more than one rank, which dpt does not support: {examples}")
    if 0 in ranks:
        raise UserError(f"the LoRA in {where} is of rank 0: its matrices are empty")
    return next(iter(ranks))


def check_lora(stored: StoredLora, where: str) -> None:
    """Raise UserError unless the tensors are a LoRA of finite numbers that agrees with its record."""
    check_numbers(stored.tensors, where)
    rank = check_shape(stored.tensors, where)
    if rank != stored.record.config.rank:
        raise UserError(f"the LoRA in {where} has rank {rank}, and its record says {stored.record.config.rank}")


def targets_in(tensors: Iterable[str]) -> list[str]:
    """The modules with an addition, in the order they come in."""
    return list(dict.fromkeys(name.removesuffix(f".{A}").removesuffix(f".{B}") for name in tensors))


def expected_targets(present: Iterable[str]) -> list[str]:
    """All projections of both attention layers of each block in `present`, with no gap in the numbering."""
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for target in present:
        match = _TARGET.fullmatch(target)
        assert match is not None  # callers have checked that
        block, attention, transformer = match[1], int(match[2]), int(match[3])
        counts[block][attention] = max(counts[block].get(attention, 1), transformer + 1)
    return [
        target
        for block, layers in counts.items()
        for attention in range(max(layers) + 1)
        for transformer in range(layers.get(attention, 1))
        for target in attention_targets(block, attention, transformer)
    ]


def attention_targets(block: str, attention: int, transformer: int) -> list[str]:
    layer = f"{block}.attentions.{attention}.transformer_blocks.{transformer}"
    return [f"{layer}.{attn}.{projection}" for attn in ("attn1", "attn2") for projection in PROJECTIONS]


def stable_diffusion_targets() -> list[str]:
    """All of them in Stable Diffusion 1.x and 2.x."""
    down, up = [(f"down_blocks.{i}", 2) for i in range(3)], [(f"up_blocks.{i}", 3) for i in (1, 2, 3)]
    blocks = [*down, ("mid_block", 1), *up]
    return [target for block, count in blocks for i in range(count) for target in attention_targets(block, i, 0)]


def blocks_of(present: Iterable[str]) -> tuple[str, ...]:
    """The blocks by name; `all` for a transformer, and if that is certain without the UNet at hand."""
    present = {target for target in present if not is_text_target(target)}
    if of_transformer(present) or present == set(stable_diffusion_targets()):
        return ("all",)
    order = {"bottom": 0, "mid": 1, "up": 2}
    blocks = {block for target in present if (block := block_of(target))}
    return tuple(sorted(blocks, key=lambda block: (order[block.rstrip("0123456789")], block)))


def missing_blocks(present: Iterable[str]) -> list[str]:
    """Blocks without a LoRA between blocks that have one, as far as that shows without the UNet at hand."""
    blocks = blocks_of(present)
    missing = []
    for side in ("bottom", "up"):
        numbers = [int(block.removeprefix(side)) for block in blocks if block.startswith(side)]
        missing += [f"{side}{i}" for i in range(min(numbers, default=0), max(numbers, default=0)) if i not in numbers]
    between = any(block.startswith("bottom") for block in blocks) and any(block.startswith("up") for block in blocks)
    return [*missing, *(["mid"] if between and "mid" not in blocks else [])]


def of_transformer(targets: Iterable[str]) -> bool:
    """Whether these are modules of a transformer, rather than of a UNet."""
    return all(map(is_lora_target, (target for target in targets if not is_text_target(target))))


def _is_target(name: str) -> bool:
    return bool(block_of(name) and _TARGET.fullmatch(name)) or is_lora_target(name) or is_text_target(name)


def require_unet(stored: StoredLora, format: str, where: str) -> None:
    if of_transformer(targets_in(stored.tensors)):
        raise UserError(
            f"{where} is a LoRA of a transformer, for which the format {format} has no names: use --format diffusers"
        )


def _single_alpha(alphas: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> float:
    present = targets_in(tensors)
    missing = [name for target in present if (name := f"{target}.{ALPHA}") not in alphas]
    if missing:
        raise UserError(f"{where} has the alpha of some projections only; it lacks {listed(missing)}")
    values = {name: _real(tensor) for name, tensor in alphas.items()}
    if bad := [name for name, value in values.items() if not (isfinite(value) and value > 0)]:
        raise UserError(f"{where} has an alpha that is not a positive number: {listed(bad)}")
    if len(set(values.values())) > 1:
        examples = ", ".join(f"{value:g} in {name}" for value, name in {v: n for n, v in values.items()}.items())
        raise UserError(f"{where} has more than one alpha, which dpt does not support: {examples}")
    if stray := [name for name in alphas if name.removesuffix(f".{ALPHA}") not in present]:
        raise UserError(f"{where} has an alpha without a LoRA: {listed(stray)}")
    return next(iter(values.values()))


def _real(tensor: Tensor) -> float:
    return float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else float("nan")


def _exported_record(record: str, config: LoraConfig, where: str) -> LoraRecord:
    """What dpt wrote about the LoRA on export, if that agrees with the file itself."""
    try:
        content = parse_json(record)
    except ValueError:
        raise UserError(f"what dpt wrote about the LoRA into {where} is not valid JSON") from None
    exported = from_plain(LoraRecord, content, where)
    if exported.format != 1:
        raise UserError(f"{where} was exported in format {exported.format}; this version of dpt reads format 1")
    pairs = {
        "rank": (config.rank, exported.config.rank),
        "alpha": (config.resolved_alpha, exported.config.resolved_alpha),
    }
    for name, (now, then) in pairs.items():
        if not isclose(now, then, rel_tol=1e-6):  # alpha went through float32
            raise UserError(f"{where} contradicts itself: its {name} is {now:g}, and dpt exported it with {then:g}")
    return exported
