"""What is said of an adapter where it is published: what it reads, how it was trained, how well it answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpt.plain_json import parse_json

CARD = "README.md"
HEAD = """---
library_name: dpt
tags:
- text-to-image
- discriminative-probing-and-tuning
---

# {name}

{what}

![the course of its training](curve.png)
"""
ADAPTER = """An adapter of Discriminative Probing and Tuning, stage 1. From the feature `{feature}` of the frozen
text-to-image model `{base}` it tells whether a picture matches a text, and where in the picture is what an expression
names.

```python
from pathlib import Path
from dpt.adapter.store import load_adapter
from dpt.plain_json import parse_json
from huggingface_hub import snapshot_download

adapter, record = load_adapter(Path(snapshot_download("{name}")))
```"""
TUNED = """What Discriminative Probing and Tuning, stage 2, has trained of the text-to-image model `{base}`: {parts}. It
draws with

```python
from pathlib import Path
from dpt.backbone import Backbone
from dpt.lora.store import attach_lora, read_lora
from huggingface_hub import snapshot_download

folder = Path(snapshot_download("{name}")){lora}
backbone = Backbone.open(BASE)
attach_lora(backbone, read_lora(folder), str(folder)).merge()
```"""


def model_card(name: str, root: Path, folders: Sequence[Path]) -> str:
    """Of what is in those folders, which the run in `root` ended with."""
    from dpt.training.run_folder import CONFIG, LOG

    noted = [parse_json(line) for line in (root / LOG).read_text().splitlines()]
    settings = {"steps": noted[-1]["step"], **parse_json((root / CONFIG).read_text())}
    given = {f"`{key}`": f"`{_named(value)}`" for key, value in settings.items() if value is not None}
    head = HEAD.format(name=name, what=_what(name, folders))
    return f"{head}\n## Last validation\n\n{_validation(noted)}\n## Settings\n\n{_table('setting', 'value', given)}"


def _what(name: str, folders: Sequence[Path]) -> str:
    from dpt.adapter import store as adapters
    from dpt.lora import store as loras
    from dpt.records import read_record

    last = folders[-1]
    if (last / adapters.RECORD).exists():
        adapter = read_record(adapters.AdapterRecord, last / adapters.RECORD)
        return ADAPTER.format(name=name, feature=adapter.config.unet_feature, base=_named(adapter.base))
    lora = read_record(loras.LoraRecord, last / loras.RECORD)
    parts = " and ".join(f"its {folder.name}" for folder in folders)
    inside = "" if len(folders) == 1 else f' / "{last.name}"'
    return TUNED.format(name=name, base=_named(lora.base), parts=parts, lora=inside)


def _validation(noted: Sequence[Mapping[str, Any]]) -> str:
    validated = [one for one in noted if "validation" in one]
    if not validated:
        return "The run was not validated.\n"
    last = validated[-1]
    shares = {f"`{question}`": f"{share:.3f}" for question, share in last["validation"].items()}
    return f"After step {last['step']}.\n\n{_table('question', 'share of right answers', shares)}"


def _table(left: str, right: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines) + "\n"


def _named(value: Any) -> Any:
    """Where something lies on the machine that trained is nobody's business: its name is enough."""
    if isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists()):
        return Path(value).name
    return value
