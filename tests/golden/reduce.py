"""Write the small part of the reference values that is stored here: DPT_GOLDEN=FOLDER python -m tests.golden.reduce"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from tests.golden.reference import CUTS, FULL, HERE, INPUTS, full


def main() -> None:
    values = full().values
    reduced_values = {name: value for name, value in values.items() if name not in INPUTS}
    cut = {name: value[CUTS[name]] if name in CUTS else value for name, value in reduced_values.items()}
    save_file({name: value.contiguous() for name, value in cut.items()}, HERE / "reference.safetensors")
    for name in ("keys", "rec_text", "rec_adapter_text"):
        content = json.loads((Path(FULL) / f"{name}.json").read_text())
        (HERE / f"{name}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
