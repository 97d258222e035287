"""How many flags are checked in which way: python -m tests.cli.options.report"""

from __future__ import annotations

from collections import Counter

from tests.cli.options.checks import Effect, Proven, Refused, Table, Warned
from tests.cli.options.sampler_table import SAMPLER
from tests.cli.options.stages_table import STAGE_1, STAGE_2

TABLES: dict[str, Table] = {"train_stage1.py": STAGE_1, "train_stage2.py": STAGE_2, "txt2img.py": SAMPLER}


def table() -> str:
    rows = ["| command | flags | by effect | by another test | refused | warned of |", "|---|---|---|---|---|---|"]
    for command, checks in TABLES.items():
        kinds = Counter(type(check) for check in checks.values())
        counts = [len(checks), *(kinds[kind] for kind in (Effect, Proven, Refused, Warned))]
        rows.append(f"| `{command}` | {' | '.join(map(str, counts))} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
