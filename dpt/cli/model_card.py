"""What is said of an adapter where it is published: what it reads, how it was trained, how well it answered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"
HEAD = """---
library_name: dpt
tags:
- text-to-image
- discriminative-probing-and-tuning
---

# {name}

An adapter of Discriminative Probing and Tuning, stage 1. From the feature `{feature}` of the frozen text-to-image model
`{base}` it tells whether a picture matches a text, and where in the picture is what an expression names.

```python
from pathlib import Path
from dpt.adapter.store import load_adapter
from huggingface_hub import snapshot_download

adapter, record = load_adapter(Path(snapshot_download("{name}")))
```

![the course of its training](curve.png)
"""


def model_card(name: str, root: Path, adapter: Path) -> str:
    """Of the adapter in that folder, which the run in `root` ended with."""
    from dpt.adapter.store import RECORD, AdapterRecord
    from dpt.records import read_record
    from dpt.training.run_folder import CONFIG, LOG

    record = read_record(AdapterRecord, adapter / RECORD)
    head = HEAD.format(name=name, feature=record.config.unet_feature, base=_named(record.base))
    noted = [json.loads(line) for line in (root / LOG).read_text().splitlines()]
    settings = {"steps": noted[-1]["step"], **json.loads((root / CONFIG).read_text())}
    given = {f"`{key}`": f"`{_named(value)}`" for key, value in settings.items() if value is not None}
    return f"{head}\n## Last validation\n\n{_validation(noted)}\n## Settings\n\n{_table('setting', 'value', given)}"


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
