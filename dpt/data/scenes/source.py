"""Examples rendered on demand: no file is read, and the types of the negatives are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from dpt.claims.facts import Related, all_hold
from dpt.claims.words import Caption, caption_text
from dpt.data.example import (
    ALL_PARTS,
    Example,
    ExampleImage,
    ExampleParts,
    GroundedRegion,
    Negative,
    Negatives,
    ReferringExpression,
    Source,
)
from dpt.data.images import Framing
from dpt.data.mixture import can_mirror, mirrored
from dpt.data.scenes.captions import NEGATIVE_TYPES, describe_scene, false_description, false_scene
from dpt.data.scenes.export import FIRST_INDEX, RANGE
from dpt.data.scenes.referring import RelativeReference, SceneExpression, referring_expression
from dpt.data.scenes.render import render
from dpt.data.scenes.world import Scene, World, make_scene
from dpt.keyed_random import KeyedRandom

FIRST_SCENE = {"train": FIRST_INDEX["train"], "val": FIRST_INDEX["val"], "test": FIRST_INDEX["rec_test"]}
"""As in an export, so that nothing trains on a scene that an export or another source tests on."""


ELSEWHERE = 100 * RANGE
"""Distance to the next candidate if a scene admits no expression; larger than any distance between splits."""


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
    """A scene, its referring expression, its captions and its negatives."""

    scene: Scene
    expression: SceneExpression
    negatives: HardNegativePair
    random_caption: Caption

    @property
    def captions(self) -> tuple[Caption, Caption, Caption]:
        return self.negatives.caption, self.negatives.hard_caption, self.random_caption

    def relations(self) -> Iterator[tuple[str | None, str, str | None]]:
        """(shape, relation, shape) of every relation in its texts."""
        for caption in self.captions:
            for fact in caption.facts:
                if isinstance(fact, Related):
                    yield fact.first.shape, fact.relation, fact.second.shape
        reference = self.expression.reference
        if isinstance(reference, RelativeReference):
            (landmark,) = reference.landmark.among(self.scene.objects)
            yield self.scene.objects[self.expression.target].shape, reference.relation, landmark.shape

    def can_mirror(self, world: World) -> bool:
        """Whether no mirrored text states a relation that the world holds out."""
        flipped = {"left": "right", "right": "left"}
        held_out = world.held_out_relations
        return all((a, flipped.get(relation, relation), b) not in held_out for a, relation, b in self.relations())


class SceneSource(Source):
    """`size` scenes of a split, each with an expression, a caption, and negatives of the given types.

    If a scene does not admit a type (a relation in a scene of one object), another type is used. The random caption
    is false for the scene, and the caption is false for the random scene.
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
        return self._annotation(index, epoch).scene

    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        annotation = self._annotation(index, epoch)
        example = self._example(index, epoch, annotation, parts)
        flip = self.framing.random_flip and self._rng(index, epoch, "flip").chance(0.5)
        texts = (*(caption.text for caption in annotation.captions), annotation.expression.text)
        if flip and annotation.can_mirror(self.world) and can_mirror(texts):
            return mirrored(example) or example
        return example

    def _rng(self, index: int, epoch: int, purpose: str) -> KeyedRandom:
        return KeyedRandom("scene source", self.seed, FIRST_SCENE[self.split] + index, epoch, purpose)

    def _annotation(self, index: int, epoch: int) -> SceneAnnotation:
        """Annotate the scene with this index, or the next candidate that admits an expression and negatives."""
        first = FIRST_SCENE[self.split] + index
        for at in range(first, first + TRIES_OF_ANY_TYPE * ELSEWHERE, ELSEWHERE):
            candidate = make_scene(self.seed, at, self.world)
            expression = referring_expression(candidate, self.world, self._rng(index, epoch, "expression"))
            negatives = self._hard_negatives(candidate, self._rng(index, epoch, "contrast"))
            if expression and negatives:
                random = self._random_caption(candidate, self._rng(index, epoch, "random caption"))
                return SceneAnnotation(candidate, expression, negatives, random)
        raise AssertionError(f"scene {index} of the split {self.split} admits no expression or no negatives")

    def _hard_negatives(self, scene: Scene, rng: KeyedRandom) -> HardNegativePair | None:
        requested = [rng.choice(self.negative_types)], [rng.choice(self.negative_types)]
        any_type = tuple(rng.sample(NEGATIVE_TYPES, len(NEGATIVE_TYPES)) for _ in range(2))
        for nth in range(TRIES + TRIES_OF_ANY_TYPE):
            description = describe_scene(scene, self.world, rng)
            caption_types, scene_types = requested if nth < TRIES else any_type
            false = [(kind, false_description(description, scene, kind, self.world, rng)) for kind in caption_types]
            changed = [(kind, false_scene(description, scene, kind, self.world, rng)) for kind in scene_types]
            captions = [(kind, candidate) for kind, candidate in false if candidate is not None]
            scenes = [(kind, candidate) for kind, candidate in changed if candidate is not None]
            if captions and scenes:
                (caption_type, false_text), (scene_type, changed_scene) = captions[0], scenes[0]
                return HardNegativePair(
                    Caption(caption_text(description, rng), description.facts),
                    Caption(caption_text(false_text, rng), false_text.facts),
                    caption_type,
                    changed_scene,
                    scene_type,
                )
        return None

    def _example(self, index: int, epoch: int, annotation: SceneAnnotation, parts: ExampleParts) -> Example:
        name = f"{self.split} scene {index}"
        return Example(
            id=f"{name} of seed {self.seed}",
            image=self._picture(name, annotation.scene),
            caption=annotation.negatives.caption.text,
            expression=self._expression(annotation) if parts.expression else None,
            negatives=self._negatives(name, index, epoch, annotation, parts) if parts.hard_negatives else None,
        )

    def _expression(self, annotation: SceneAnnotation) -> ReferringExpression:
        expression, size = annotation.expression, annotation.scene.image_size
        box = self.framing.box(
            (expression.box.x0, expression.box.y0, expression.box.x1, expression.box.y1), (size, size)
        )
        assert box is not None, "scenes are square and their boxes inside"
        return ReferringExpression(expression.text, (GroundedRegion(box, (expression.span,)),), expression.kind)

    def _negatives(
        self, name: str, index: int, epoch: int, annotation: SceneAnnotation, parts: ExampleParts
    ) -> Negatives:
        pair = annotation.negatives
        hard = Negative(
            pair.hard_caption.text,
            self._picture(f"{name}, {pair.hard_scene_type} changed", pair.hard_scene),
            pair.hard_caption_type,
            pair.hard_scene_type,
        )
        if not parts.random_negatives:
            return Negatives(hard)
        random_scene = self._random_scene(pair.caption, self._rng(index, epoch, "random scene"))
        picture = self._picture(f"random for {name}", random_scene)
        return Negatives(hard, Negative(annotation.random_caption.text, picture))

    def _random_caption(self, scene: Scene, rng: KeyedRandom) -> Caption:
        """The caption of another scene that is false for this one."""
        while True:
            description = describe_scene(self._any_scene(rng), self.world, rng)
            if not all_hold(description.facts, scene.objects):
                return Caption(caption_text(description, rng), description.facts)

    def _random_scene(self, caption: Caption, rng: KeyedRandom) -> Scene:
        """Another scene that this caption is false for."""
        while True:
            other = self._any_scene(rng)
            if not all_hold(caption.facts, other.objects):
                return other

    def _any_scene(self, rng: KeyedRandom) -> Scene:
        """A scene of the whole split, so that a small source does not repeat its few images."""
        return make_scene(self.seed, FIRST_SCENE[self.split] + rng.randrange(RANGE), self.world)

    def _picture(self, name: str, scene: Scene) -> ExampleImage:
        image = Image.fromarray(render(scene))
        return ExampleImage(name, self.framing.pixels(image), sizes=self.framing.sizes(image.size))
