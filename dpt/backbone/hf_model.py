"""The one opener of transformers models: CLIP, detectors, phrase encoders. Safetensors only, no code of the model's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.backbone.config_limits import check_sizes
from dpt.backbone.hash_memo import remembered_hash
from dpt.backbone.loading import first_line, locate_model, quiet_libraries
from dpt.errors import UserError
from dpt.files import sha256
from dpt.untrusted import read_json_object

FILES = ("*.json", "*.txt", "*.safetensors")


@dataclass(frozen=True)
class HFModelFolder:
    path: Path
    name: str
    """How results name it: the hub id, or the folder's last name."""
    model_type: str
    config: dict[str, Any]

    @property
    def identity(self) -> str:
        """The name and a hash of the weights."""
        weights = sorted(self.path.glob("*.safetensors"))

        def digest() -> str:
            return hashlib.sha256("".join(sha256(file) for file in weights).encode()).hexdigest()

        return f"{self.name} {remembered_hash(self.path, 'weights', weights, digest)[:12]}"

    def load(self, kind: Any) -> Any:
        """A tokenizer, an image processor, or a model with all its weights, of this transformers class."""
        return self.load_model(kind) if hasattr(kind, "config_class") else self._load(kind)

    def load_model(self, kind: Any, unused: tuple[str, ...] = ()) -> Any:
        """A model in float32. Weights may lack only modules that are never called, named by prefix in `unused`."""
        model, report = self._load(kind, use_safetensors=True, dtype="float32", output_loading_info=True)
        # transformers would fill what is missing with random numbers and go on.
        faults = [*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])]
        if missing := sorted(key for key in faults if not key.startswith(unused)):
            raise UserError(
                f"the weights in {self.name} do not fit {kind.__name__}: {len(missing)} tensors are missing or of "
                f"another shape, first {missing[0]}"
            )
        return model

    def _load(self, kind: Any, **options: Any) -> Any:
        with quiet_libraries():
            try:
                return kind.from_pretrained(self.path, local_files_only=True, **options)
            # What a damaged folder raises depends on the file and on the library's version.
            except Exception as error:
                raise UserError(f"{self.name} cannot be opened as {kind.__name__}: {first_line(error)}") from None


def open_hf_model(name: str, kinds: Sequence[str] | None, what: str, without_owner: bool = False) -> HFModelFolder:
    """A folder or hub id whose config names one of these model types; None accepts all. `what` is for messages."""
    path = locate_model(name, files=FILES, without_owner=without_owner)
    shown = path.resolve().name if Path(name).expanduser().is_dir() else name
    try:
        config = read_json_object(path / "config.json")
    except (OSError, UserError):
        config = {}
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{shown} is no {what}: it has no config.json that names its model_type")
    if kinds is not None and model_type not in kinds:
        raise UserError(f"{shown} is a {model_type} model, and a {what} is one of {', '.join(kinds)}")
    check_sizes(config, path / "config.json")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{shown} has no weights in the safetensors format, and no other is read")
    return HFModelFolder(path, shown, model_type, config)
