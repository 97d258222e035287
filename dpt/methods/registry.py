"""Methods by name. A new method adds an entry to `known_methods`; NAME=PATH makes one from any checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dpt.embedded import EMBEDDED, checkpoints_of, embedded_defaults, embedded_path
from dpt.errors import UserError, fail
from dpt.methods.base import BASE, DiffusionConfig, MethodConfig
from dpt.methods.sld.method import ORACLE, SUFFIX, SLDConfig, default_masks
from dpt.methods.sld.settings import LoopSettings
from dpt.sampling.options import PUBLISHED_TARGET, Correction, Interval, recommended_correction

__all__ = ["BASE", "KEYS", "known_methods", "parse_method", "parse_methods"]


def known_methods(num_timesteps: int, model: str = EMBEDDED) -> dict[str, MethodConfig]:
    """The model itself, SLD after it, and for an embedded model the methods of its checkpoints."""
    checkpoints = checkpoints_of(model)
    entries: list[MethodConfig] = [
        DiffusionConfig(BASE),
        SLDConfig("sld"),
    ]
    entries += [DiffusionConfig(name, checkpoint) for name, checkpoint in checkpoints.items()]
    if trained := checkpoints.get("dpt"):
        recommended = recommended_correction(embedded_defaults(model).correction, num_timesteps)
        entries += [
            DiffusionConfig("corrected", trained, correction=recommended),
            DiffusionConfig("best4", trained, candidates=4),
            DiffusionConfig("best8", trained, candidates=8),
        ]
        if ipr := checkpoints.get("ipr"):
            entries.append(DiffusionConfig("ipr-dpt", trained, also=ipr))
    return {entry.name: entry for entry in entries}


KEYS: Mapping[str, Callable[[str], Any]] = {
    "factor": float,
    "target": str,
    "norm": str,
    "start": float,
    "end": float,
    "every": int,
    "candidates": int,
    "negative_prompt": str,
    "negative_lora": Path,
    "also": embedded_path,
    "lora": {"on": True, "off": False}.__getitem__,
}
"""Options after a method's path, as in dpt=FOLDER,factor=0.5,target=fused."""


def parse_method(text: str) -> DiffusionConfig:
    """Parse "NAME=PATH,KEY=VALUE,..."; without a PATH, the model itself with another negative prompt."""
    name, _, rest = text.partition("=")
    if "," in name:
        first = name.partition(",")[0]
        raise UserError(f"the options of a method follow its path: {first}=PATH,{text.partition(',')[2]}, not {text!r}")
    path, *pairs = rest.split(",")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in KEYS:
            raise UserError(
                f"the method {name} has no option {pair!r}; its options are {', '.join(KEYS)}, as KEY=VALUE"
            )
        try:
            options[key] = KEYS[key](value)
        except (ValueError, KeyError):
            raise UserError(f"the method {name} has an invalid value: {key}={value}") from None
    interval = Interval(options.pop("start", 0.0), options.pop("end", 1.0))
    candidates, lora, also = options.pop("candidates", 1), options.pop("lora", True), options.pop("also", None)
    negative_prompt, negative_lora = options.pop("negative_prompt", None), options.pop("negative_lora", None)
    if "factor" in options:
        options.setdefault("target", PUBLISHED_TARGET)
    try:
        correction = Correction(interval=interval, **options)
    except UserError as error:
        raise UserError(f"the method {name}: {error}") from None
    if options and not correction.on:
        raise UserError(f"the method {name} has correction options but no factor")
    checkpoint = embedded_path(path) if path else None
    return DiffusionConfig(name, checkpoint, lora, correction, candidates, negative_prompt, negative_lora, also)


SLD_KEYS: Mapping[str, Callable[[str], Any]] = {
    "masks": str,
    "rounds": int,
    "strength": float,
    "policy": str,
    "readings": int,
}
"""Options after METHOD+sld=DETECTOR, as in base+sld=owlv2,masks=ellipse."""


def _method(text: str, known: Mapping[str, MethodConfig]) -> MethodConfig:
    """A known name, NAME=PATH, or either with "+sld" or "+sld=DETECTOR,..." for SLD after it."""
    first, has_sld, rest = text.partition(SUFFIX)
    if not has_sld or (rest and not rest.startswith("=")):
        if text not in known and not re.search("[=,]", text):
            close = "".join(f", did you mean {name}?" for name in get_close_matches(text, known, n=1))
            names = ", ".join(known)
            raise UserError(f"there is no method {text!r}{close or f'; there are {names}'}; or {text}=FOLDER for yours")
        return known.get(text) or parse_method(text)
    base = _method(first, known)
    if not isinstance(base, DiffusionConfig) or SUFFIX in rest:
        raise UserError(f"{text}: SLD can only follow a method that samples pictures, not {base.name}")
    detector, *pairs = rest.removeprefix("=").split(",")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            options[key] = SLD_KEYS[key](value)
        except KeyError:
            raise UserError(f"{text}: SLD has no option {pair!r}; its options are {', '.join(SLD_KEYS)}") from None
        except ValueError:
            raise UserError(f"{text}: invalid value {pair}") from None
    loop = LoopSettings(options.pop("rounds", LoopSettings.max_rounds), policy=options.pop("policy", "route"))
    if detector not in ("", ORACLE):
        options.setdefault("masks", default_masks(detector))
    return SLDConfig(f"{base.name}-sld", base, detector or ORACLE, loop=loop, **options)


def parse_methods(texts: Sequence[str], num_timesteps: int, model: str = EMBEDDED) -> list[MethodConfig]:
    known = known_methods(num_timesteps, model)
    if not texts:
        fail(f"name the methods to run: any of {', '.join(known)}, or NAME=PATH of a checkpoint")
    methods = [_method(text, known) for text in texts]
    names = [method.name for method in methods]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        fail(f"the method {repeated!r} is listed twice")
    return methods
