"""`--push_to_hub`, and the model card it uploads."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.cli.train.options import HubOptions
from dpt.embedded import EMBEDDED
from dpt.errors import UserError, fail
from dpt.generation_defaults import FILE_NAME as DEFAULTS
from dpt.generation_defaults import generation_defaults
from dpt.untrusted import parse_json, read_json_object, read_text

if TYPE_CHECKING:
    from huggingface_hub import HfApi


HIDDEN = "***"


class NotUploadedError(UserError):
    """The run is finished and saved, but not uploaded. 69 is EX_UNAVAILABLE of sysexits.h."""

    exit_code = 69


class Hub:
    """A hub repository that exists and is writable."""

    def __init__(self, api: HfApi, repository: str, token: str) -> None:
        self._api, self.repository, self._token = api, repository, token

    def push(self, root: Path, folders: Sequence[Path], curve: Path) -> str:
        """Upload the results with a model card and the training curve; return the address."""
        folder = folders[0] if len(folders) == 1 else root
        try:
            if folder != root:
                for file in (curve, root / DEFAULTS):
                    if file.exists():
                        shutil.copy(file, folder / file.name)
            (folder / CARD).write_text(model_card(self.repository, root, folders))
            patterns = [CARD, DEFAULTS, curve.name, *(f"{part.name}/*" for part in folders)]
            message = "Upload what a finished run has trained"
            self._api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                commit_message=message,
                allow_patterns=patterns if folder == root else None,
            )
        except Exception as error:  # the run is saved: no upload error may look like a failed run
            raise NotUploadedError(
                f"the run is finished and saved, but {folder} was not uploaded to {self.repository} "
                f"({reason(error, self._token)}): repeat the command, or run `hf upload {self.repository} {folder}`"
            ) from None
        return f"{self._api.endpoint}/{self.repository}"


def open_hub(options: HubOptions, root: Path) -> Hub | None:
    if not options.push_to_hub:
        return None
    from huggingface_hub import HfApi, get_token

    if options.hub_token:  # trackers record the command line
        sys.argv[:] = [word.replace(options.hub_token, HIDDEN) for word in sys.argv]
    token = (options.hub_token or get_token() or "").strip()
    if not token:
        fail("--push_to_hub needs a token: log in with `hf auth login`, set HF_TOKEN, or give --hub_token")
    if not (token.isascii() and token.isprintable()):  # libraries would quote it in their errors
        fail("the token for --push_to_hub has blanks or characters outside ASCII: copy it again")
    name = options.hub_model_id or root.resolve().name
    api = HfApi(token=token)
    try:
        role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise PermissionError("this token may only read")
        repository = api.create_repo(name, exist_ok=True).repo_id
    except Exception as error:  # refuse before training, not after it
        fail(f"--push_to_hub cannot upload {name} to {api.endpoint} ({reason(error, token)}); nothing was trained")
    return Hub(api, repository, token)


def reason(error: Exception, token: str) -> str:
    """The first line of the error, without the token."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip() if lines else type(error).__name__).replace(token, HIDDEN)


CARD = "README.md"

HEAD = """---
library_name: dpt
base_model: {base}
{licence}
tags:
- text-to-image
- discriminative-probing-and-tuning
---

# {name}

{what}

![training curve](curve.png)
"""

OWN_LICENCE = "license: apache-2.0"

BASE_LICENCE = "license: other\nlicense_name: same-as-base-model"
"""Weights trained on a model are bound by that model's licence, which this program does not know."""

ADAPTER = """An adapter of Discriminative Probing and Tuning, stage 1. It reads the feature `{feature}` of the frozen
text-to-image model `{base}`, scores how well an image matches a caption, and locates referring expressions.

```python
from pathlib import Path
from dpt.adapter.io import load_adapter
from huggingface_hub import snapshot_download

adapter, record = load_adapter(Path(snapshot_download("{name}")))
```"""

TUNED = """Discriminative Probing and Tuning, stage 2, for the text-to-image model `{base}`: {parts}. Sample with

```python
from pathlib import Path
from dpt.backbone import open_backbone
from dpt.lora.io import attach_lora, read_lora
from huggingface_hub import snapshot_download

folder = Path(snapshot_download("{name}")){lora}
backbone = open_backbone("{base}")
attach_lora(backbone, read_lora(folder), str(folder)).merge()
```"""


STEERING = """
Sample with the negative prompt `{negative}`: the model learned to draw what people do not prefer under this phrase.
Commands of dpt read it from `{file}` and apply it.
"""


def model_card(name: str, root: Path, folders: Sequence[Path]) -> str:
    """The model card of the results in `folders`, trained by the run in `root`."""
    from dpt.training.engine.run_folder import CONFIG, LOG

    lines = [parse_json(line) for line in read_text(root / LOG).splitlines()]
    settings = {"steps": lines[-1]["step"], **read_json_object(root / CONFIG)}
    rows = {f"`{key}`": f"`{_without_path(value)}`" for key, value in settings.items() if value is not None}
    base = _base(folders[-1])
    licence = OWN_LICENCE if base == EMBEDDED else BASE_LICENCE
    what = _description(name, folders)
    if negative := generation_defaults(root).negative_prompt:
        what += f"\n{STEERING.format(negative=negative, file=DEFAULTS)}"
    head = HEAD.format(name=name, what=what, base=_without_path(base), licence=licence)
    return f"{head}\n## Last validation\n\n{_validation(lines)}\n## Settings\n\n{_table('setting', 'value', rows)}"


def _base(folder: Path) -> str:
    """The model that a result was trained on."""
    from dpt.adapter import io as adapters
    from dpt.lora import io as loras
    from dpt.records import read_record

    if (folder / adapters.RECORD).exists():
        return read_record(adapters.AdapterRecord, folder / adapters.RECORD).base
    return read_record(loras.LoraRecord, folder / loras.RECORD).base


def _description(name: str, folders: Sequence[Path]) -> str:
    from dpt.adapter import io as adapters
    from dpt.lora import io as loras
    from dpt.records import read_record

    last = folders[-1]
    if (last / adapters.RECORD).exists():
        adapter = read_record(adapters.AdapterRecord, last / adapters.RECORD)
        return ADAPTER.format(name=name, feature=adapter.config.unet_feature, base=_without_path(adapter.base))
    lora = read_record(loras.LoraRecord, last / loras.RECORD)
    parts = " and ".join(f"its {folder.name}" for folder in folders)
    inside = "" if len(folders) == 1 else f' / "{last.name}"'
    return TUNED.format(name=name, base=_without_path(lora.base), parts=parts, lora=inside)


def _validation(lines: Sequence[Mapping[str, Any]]) -> str:
    validated = [line for line in lines if "validation" in line]
    if not validated:
        return "The run was not validated.\n"
    last = validated[-1]
    rates = {f"`{measure}`": f"{value:.3f}" for measure, value in last["validation"].items()}
    return f"After step {last['step']}.\n\n{_table('measure', 'value', rates)}"


def _table(left: str, right: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines) + "\n"


def _without_path(value: Any) -> Any:
    """Paths of the training machine are private: publish the last component only."""
    if isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists()):
        return Path(value).name
    return value
