"""Write metadata.jsonl beside the images of `dpt bench run`, with their prompts: a folder that can be trained on.

python tools/caption_images.py RUN METHOD
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(run: Path, method: str) -> None:
    records = [json.loads(line) for line in (run / f"{method}.jsonl").read_text().splitlines()]
    rows = [{"file_name": f"{r['prompt_id']}-{r['index']}.png", "caption": r["prompt"]} for r in records]
    file = run / method / "metadata.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} captions in {file}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
