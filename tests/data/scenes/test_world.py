from __future__ import annotations

from typing import Any

import pytest

from dpt.claims.words import SHAPES
from dpt.data.scenes.world import POCKET_WORLD, WORLDS, World


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ({"shapes": ("circle", "hexagon")}, "shape"),
        ({"shapes": ()}, "shape"),
        ({"colours": ("mauve",)}, "colour"),
        ({"sizes": ("huge",)}, "size"),
        ({"backgrounds": ()}, "background"),
        ({"sorts": (("crowd", 1.0),)}, "sort"),
        ({"sorts": (("single", 0.0),)}, "weights"),
        ({"sorts": (("single", 1.0), ("pair", -1.0))}, "weights"),
        ({"max_objects": 0}, "1 to 4"),
        ({"max_objects": 5}, "1 to 4"),
        ({"image_size": 32}, "pixels"),
        ({"shapes": ("circle",), "colours": ("red",)}, "two kinds"),
    ],
)
def test_invalid_world_is_refused(invalid: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        World(**invalid)


def test_held_out_kinds_are_not_kinds_of_the_world() -> None:
    assert not set(POCKET_WORLD.held_out_kinds) & set(POCKET_WORLD.kinds)
    assert len(POCKET_WORLD.kinds) == 4 * 6 - len(POCKET_WORLD.held_out_kinds)


def test_worlds_have_their_documented_size() -> None:
    full = WORLDS["full"]
    assert (len(full.shapes), len(full.colours), len(full.sizes)) >= (6, 8, 2)
    assert full.shapes == SHAPES
    assert len(POCKET_WORLD.shapes) >= 4
    assert len(POCKET_WORLD.colours) >= 6
