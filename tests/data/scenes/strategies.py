"""Scenes for hypothesis to draw."""

from __future__ import annotations

from hypothesis import strategies as st

from dpt.data.scenes.world import WORLDS, Scene, World, make_scene

seeds = st.integers(-5, 10**6)
indices = st.integers(0, 10**9)
worlds = st.sampled_from(list(WORLDS.values()))
noises = st.sampled_from([0.0, 0.3, 1.0])


@st.composite
def worlds_with_scenes(draw: st.DrawFn) -> tuple[World, Scene, int]:
    """A world, a scene of it, and a key for further random draws."""
    world, index = draw(worlds), draw(indices)
    return world, make_scene(draw(seeds), index, world), index
