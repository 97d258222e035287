"""The notebook runs from top to bottom, and has the outputs of such a run stored.

No Jupyter is needed: code cells are executed in order, in one namespace. To store their outputs after a change:
DPT_WRITE_NOTEBOOK=1 pytest tests/test_notebook.py
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "docs/tour.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs as a notebook stores them: what was printed, then the last expression if it is an image."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        tree.body[-1] = ast.copy_location(ast.Assign([ast.Name("_", ast.Store())], last.value), last)
    names["_"] = None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(ast.fix_missing_locations(tree), str(NOTEBOOK), "exec"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if isinstance(names["_"], Image.Image):
        data = io.BytesIO()
        names["_"].save(data, "PNG", optimize=True)
        png = {"image/png": base64.b64encode(data.getvalue()).decode(), "text/plain": ["an image"]}
        outputs.append({"data": png, "execution_count": None, "metadata": {}, "output_type": "execute_result"})
    return outputs


@pytest.mark.slow
def test_the_notebook_runs_and_its_stored_outputs_are_those_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        outputs = run_cell("".join(cell["source"]), names)
        if "DPT_WRITE_NOTEBOOK" in os.environ:
            cell["outputs"], cell["execution_count"] = outputs, number
            for output in outputs:
                if "execution_count" in output:
                    output["execution_count"] = number
        kinds = [(output["output_type"], len(output.get("text", ""))) for output in outputs]
        assert kinds == [(output["output_type"], len(output.get("text", ""))) for output in cell["outputs"]]
        assert outputs, "every code cell shows something"
    if "DPT_WRITE_NOTEBOOK" in os.environ:
        NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert names["outcome"].finished
