"""Builders of benchmark results."""

from __future__ import annotations

from typing import Any

from dpt.evaluation.bench.results import DetectedObject, ImageResult, JudgedAtom


def row(method: str, prompt_id: str = "a", index: int = 0, passed: bool | None = True, **more: Any) -> ImageResult:
    values: dict[str, Any] = {"category": "left", "prompt": f"a car <{prompt_id}>", "clip": None, **more}
    atoms = more.get("atoms", (JudgedAtom("count", "1 x car", bool(passed)),) if passed is not None else ())
    objects = more.get("objects", (DetectedObject("car", "red", None, (2.0, 3.0, 20.0, 30.0), 0.75),))
    return ImageResult(
        method, prompt_id, index, values["category"], values["prompt"], False, 1, passed, atoms, objects, 0,
        values["clip"],
    )  # fmt: skip


def sr2d_atoms(both: bool, placed: bool) -> tuple[JudgedAtom, ...]:
    """The atoms of a picture of SR2D with a relation."""
    return (
        JudgedAtom("count", "at least 1 x car", both),
        JudgedAtom("count", "at least 1 x dog", True),
        JudgedAtom("relation", "car left dog", placed),
    )
