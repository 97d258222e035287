"""A transformers model from a folder or hub id: safetensors only, and with a name that tells which weights it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from dpt.backbone.loading import locate_model
from dpt.errors import UserError
from dpt.files import sha256
from dpt.untrusted import parse_json

WANTED = ("*.json", "*.txt", "*.safetensors")


@dataclass(frozen=True)
class HFModelFolder:
    path: Path
    name: str
    """As a result tells it: the hub id, or the folder's last name."""
    model_type: str
    config: dict[str, Any]

    @property
    def identity(self) -> str:
        digest = hashlib.sha256("".join(sha256(file) for file in self._weights).encode())
        return f"{self.name} {digest.hexdigest()[:12]}"

    def _load_model(self, kind: Any) -> Any:
        logging.disable_progress_bar()  # a second long, and it would stand between the lines of ours
        model, found = kind.from_pretrained(
            self.path, local_files_only=True, use_safetensors=True, dtype="float32", output_loading_info=True
        )
        # The library would fill what is missing with random numbers, and go on.
        if faults := sorted(found["missing_keys"]):
            raise UserError(f"the weights in {self.name} lack {len(faults)} of {kind.__name__}, first {faults[0]}")
        return model

    @property
    def _weights(self) -> list[Path]:
        return sorted(self.path.glob("*.safetensors"))

    def load(self, kind: Any) -> Any:
        """A model, tokenizer or image processor of that kind, from this folder and nowhere else."""
        try:
            if not hasattr(kind, "config_class"):
                return kind.from_pretrained(self.path, local_files_only=True)
            return self._load_model(kind)
        except UserError:
            raise
        # What a damaged folder raises depends on which of its files is damaged, and on the library of the day.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.name} cannot be opened as {kind.__name__}: {reason}") from None


def open_hf_model(name: str, kinds: Sequence[str], what: str) -> HFModelFolder:
    """`kinds`: the types of model that will do, as their config names them."""
    path = locate_model(name, wanted=WANTED)
    shown = path.resolve().name if Path(name).expanduser().is_dir() else name
    try:
        config = parse_json((path / "config.json").read_text())
        model_type = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{shown} is no {what}: it has no config.json that names its type of model") from None
    if model_type not in kinds:
        raise UserError(f"{shown} is a {model_type} model, and a {what} is one of {', '.join(kinds)}")
    folder = HFModelFolder(path, shown, model_type, config)
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{shown} has no weights in the safetensors format, and no other is read")
    return folder
