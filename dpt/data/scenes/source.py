"""Examples rendered on the spot, by index: no file is read, and the types of the negatives are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from dpt.claims.description import Caption, caption_text
from dpt.claims.facts import Related, all_hold
from dpt.data.example import Example, ExampleImage, GroundedRegion, MatchingExample, ReferringExpression, Source
from dpt.data.images import Framing
from dpt.data.mirror import mirrored
from dpt.data.scenes import referring
from dpt.data.scenes.captions import describe
from dpt.data.scenes.export import FIRST_INDEX, RANGE
from dpt.data.scenes.layout import scene
from dpt.data.scenes.negatives import NEGATIVE_TYPES, contradict, falsify
from dpt.data.scenes.referring import RelativeReference, referring_expression
from dpt.data.scenes.render import render
from dpt.data.scenes.world import Scene, World
from dpt.keyed_random import KeyedRandom

FIRST_SCENE = {"train": FIRST_INDEX["train"], "val": FIRST_INDEX["val"], "test": FIRST_INDEX["rec_test"]}
"""As in an export, so that no source trains on a scene that another, or an export, tests."""


ELSEWHERE = 100 * RANGE
"""How far on the next scene is looked for if nothing can be referred to in one; no split begins so far apart."""


TRIES = 8

TRIES_OF_ANY_TYPE = 64


@dataclass(frozen=True)
class HardNegativePair:
    """A caption of a scene, a caption that is false for it, and a scene that the caption is false for."""

    caption: Caption
    hard_caption: Caption
    hard_caption_type: str
    hard_scene: Scene
    hard_scene_type: str


@dataclass(frozen=True)
class SceneAnnotation:
    """A scene, and all that an example says about it."""

    scene: Scene
    said: referring.SceneExpression
    contrast: HardNegativePair
    random_caption: Caption

    def relations(self) -> Iterator[tuple[str | None, str, str | None]]:
        """(shape, relation, shape), whichever text says it."""
        for caption in (self.contrast.caption, self.contrast.hard_caption, self.random_caption):
            for fact in caption.facts:
                if isinstance(fact, Related):
                    yield fact.first.shape, fact.relation, fact.second.shape
        reference = self.said.reference
        if isinstance(reference, RelativeReference):
            (landmark,) = reference.landmark.among(self.scene.objects)
            yield self.scene.objects[self.said.target].shape, reference.relation, landmark.shape

    def flips_to_held_out(self, world: World) -> bool:
        """Whether a text, when mirrored, would say what no caption of this world may say."""
        other_side = {"left": "right", "right": "left"}
        return any((a, other_side.get(said, said), b) in world.held_out_relations for a, said, b in self.relations())


class SceneSource(Source):
    """`size` scenes of a split, each with an expression, a caption, and negatives of the types asked for.

    A type that a scene does not admit (a relation in a scene of one object) gives way to one that it does. A random
    caption is false for the scene, and the caption is false for the random scene.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        split: str,
        framing: Framing,
        size: int = RANGE,
        negative_types: tuple[str, ...] = NEGATIVE_TYPES,
    ) -> None:
        if split not in FIRST_SCENE:
            raise ValueError(f"there is no split {split!r}; the splits are {', '.join(FIRST_SCENE)}")
        if not 1 <= size <= RANGE:
            raise ValueError(f"a split holds 1 to {RANGE} scenes, not {size}")
        if not negative_types or set(negative_types) - set(NEGATIVE_TYPES):
            raise ValueError(f"negatives are of the types {', '.join(NEGATIVE_TYPES)}; got {negative_types}")
        self.world, self.seed, self.split, self.framing, self.size = world, seed, split, framing, size
        self.negative_types = negative_types

    def __len__(self) -> int:
        return self.size

    def scene(self, index: int, epoch: int = 0) -> Scene:
        return self._told(index, epoch).scene

    def example(self, index: int, epoch: int = 0) -> Example:
        told = self._told(index, epoch)
        example = self._example(f"{self.split} scene {index}", told, self._draws(index, epoch, "random scene"))
        flip = self.framing.random_flip and self._draws(index, epoch, "flip").chance(0.5)
        if flip and not told.flips_to_held_out(self.world):
            return mirrored(example) or example
        return example

    def _draws(self, index: int, epoch: int, purpose: str) -> KeyedRandom:
        return KeyedRandom("scene source", self.seed, FIRST_SCENE[self.split] + index, epoch, purpose)

    def _told(self, index: int, epoch: int) -> SceneAnnotation:
        """Of the scene of the index, or the next elsewhere about which something can be said."""
        first = FIRST_SCENE[self.split] + index
        for at in range(first, first + TRIES_OF_ANY_TYPE * ELSEWHERE, ELSEWHERE):
            one = scene(self.seed, at, self.world)
            said = referring_expression(one, self.world, self._draws(index, epoch, "expression"))
            contrast = self._contrast(one, self._draws(index, epoch, "contrast"))
            if said and contrast:
                random = self._random_caption(one, self._draws(index, epoch, "random caption"))
                return SceneAnnotation(one, said, contrast, random)
        raise AssertionError(f"nothing can be said about scene {index} of the split {self.split}")

    def _contrast(self, one: Scene, draws: KeyedRandom) -> HardNegativePair | None:
        wanted = [draws.pick(self.negative_types)], [draws.pick(self.negative_types)]
        any_type = tuple(draws.some(NEGATIVE_TYPES, len(NEGATIVE_TYPES)) for _ in range(2))
        for nth in range(TRIES + TRIES_OF_ANY_TYPE):
            right = describe(one, self.world, draws)
            for_caption, for_scene = wanted if nth < TRIES else any_type
            wrong = [(kind, falsify(right, one, kind, self.world, draws)) for kind in for_caption]
            other = [(kind, contradict(right, one, kind, self.world, draws)) for kind in for_scene]
            captions = [(kind, found) for kind, found in wrong if found is not None]
            scenes = [(kind, found) for kind, found in other if found is not None]
            if captions and scenes:
                (caption_type, false), (scene_type, changed) = captions[0], scenes[0]
                return HardNegativePair(
                    Caption(caption_text(right, draws), right.facts),
                    Caption(caption_text(false, draws), false.facts),
                    caption_type,
                    changed,
                    scene_type,
                )
        return None

    def _example(self, name: str, told: SceneAnnotation, draws: KeyedRandom) -> Example:
        one, contrast, box = told.scene, told.contrast, told.said.box
        framed = self.framing.box((box.x0, box.y0, box.x1, box.y1), (one.image_size, one.image_size))
        assert framed is not None, "scenes are square and their boxes inside"
        return Example(
            id=f"{name} of seed {self.seed}",
            image=self._picture(name, one),
            expression=ReferringExpression(told.said.text, (GroundedRegion(framed, (told.said.span,)),)),
            matching=MatchingExample(
                caption=contrast.caption.text,
                hard_caption=contrast.hard_caption.text,
                random_caption=told.random_caption.text,
                hard_image=self._picture(f"{name}, {contrast.hard_scene_type} changed", contrast.hard_scene),
                random_image=self._picture(f"random for {name}", self._random_scene(contrast.caption, draws)),
                hard_caption_type=contrast.hard_caption_type,
                hard_image_type=contrast.hard_scene_type,
            ),
        )

    def _random_caption(self, one: Scene, draws: KeyedRandom) -> Caption:
        while True:
            other = self._any_scene(draws)
            right = describe(other, self.world, draws)
            if not all_hold(right.facts, one.objects):
                return Caption(caption_text(right, draws), right.facts)

    def _random_scene(self, caption: Caption, draws: KeyedRandom) -> Scene:
        while True:
            other = self._any_scene(draws)
            if not all_hold(caption.facts, other.objects):
                return other

    def _any_scene(self, draws: KeyedRandom) -> Scene:
        """Of the same split, so that a small source cannot be told by its few pictures."""
        return scene(self.seed, FIRST_SCENE[self.split] + draws.below(RANGE), self.world)

    def _picture(self, name: str, one: Scene) -> ExampleImage:
        return ExampleImage(name, self.framing.pixels(Image.fromarray(render(one))))
