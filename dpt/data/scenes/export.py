"""Export scenes as a data folder in the published formats, which the loaders of COCO and RefCOCO read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from tqdm import tqdm

from dpt.claims.facts import Box
from dpt.claims.words import SHAPES, Caption, Description, caption_text
from dpt.data.files import reading as layout
from dpt.data.files.hard_negatives import HardNegatives, captions_of_images, hard_negatives_table
from dpt.data.scenes.captions import NEGATIVE_TYPES, describe_scene, false_description, false_scene
from dpt.data.scenes.referring import KINDS, SceneExpression, referring_expression
from dpt.data.scenes.render import render
from dpt.data.scenes.world import WORLDS, Scene, World, make_scene
from dpt.files import atomic_folder
from dpt.keyed_random import KeyedRandom

Record = dict[str, Any]


COCO_CATEGORIES = [{"id": i + 1, "name": shape, "supercategory": "shape"} for i, shape in enumerate(SHAPES)]


def image_name(split: str, id_: int, suffix: str) -> str:
    return f"COCO_{split}_{id_:012d}.{suffix}"


def image_record(id_: int, file_name: str, scene: Scene) -> Record:
    return {"id": id_, "file_name": file_name, "height": scene.image_size, "width": scene.image_size}


def coco_box(box: Box) -> list[float]:
    return [round(number, 3) for number in (box.x0, box.y0, box.width, box.height)]


def captions_file(images: Sequence[Record], captions: Sequence[tuple[int, str]]) -> Record:
    """COCO captions, out of image records and (image id, caption)."""
    return {
        "info": {"description": "rendered scenes of coloured shapes"},
        "licenses": [],
        "images": list(images),
        "annotations": [
            {"id": id_, "image_id": image_id, "caption": text} for id_, (image_id, text) in enumerate(captions)
        ],
    }


@dataclass(frozen=True)
class SceneReferral:
    """An expression of an image."""

    image: Record
    expression: SceneExpression
    shape: str
    dataset: str


def referring_file(referrals: Sequence[SceneReferral], first_id: int) -> Record:
    """MDETR's format: one image entry per expression, with exactly one annotation."""
    images, annotations = [], []
    for id_, referral in enumerate(referrals, first_id):
        images.append(
            {
                **referral.image,
                "id": id_,
                "original_id": referral.image["id"],
                "caption": referral.expression.text,
                "dataset_name": referral.dataset,
            }
        )
        annotations.append(
            {
                "id": id_,
                "image_id": id_,
                "original_id": referral.image["id"],
                "category_id": SHAPES.index(referral.shape) + 1,
                "bbox": coco_box(referral.expression.box),
                "area": round(referral.expression.box.width * referral.expression.box.height, 3),
                "iscrowd": 0,
                "tokens_positive": [list(referral.expression.span)],
            }
        )
    return {"info": {}, "images": images, "annotations": annotations, "categories": COCO_CATEGORIES}


def prompt_record(id_: int, category: str, text: str, scene: Scene) -> Record:
    return {
        "img_id": id_,
        "name": category,
        "captions": text,
        "width": scene.image_size,
        "height": scene.image_size,
        "bbox": [coco_box(thing.box) for thing in scene.objects],
        "label": [thing.shape for thing in scene.objects],
    }


CATEGORIES = ("numerical", "spatial", "semantic", "mixed", "null")

TRIES_PER_PROMPT = 500


def alignment_prompts(seed: int, first_index: int, n: int, world: World) -> list[Record]:
    """About n different prompts, equally many of each category; fewer if the world has no more."""
    per_category = max(1, round(n / len(CATEGORIES)))
    prompts: list[Record] = []
    texts: set[str] = set()
    counts: Counter[str] = Counter()
    for index in range(first_index, first_index + n * TRIES_PER_PROMPT):
        if all(counts[category] >= per_category for category in CATEGORIES):
            break
        scene = make_scene(seed, index, world)
        rng = KeyedRandom("prompt", seed, index)
        description = describe_scene(scene, world, rng)
        text = caption_text(description, rng)
        category = category_of(description)
        if counts[category] < per_category and text not in texts:
            texts.add(text)
            counts[category] += 1
            prompts.append(prompt_record(len(prompts), category, text, scene))
    return prompts


def category_of(description: Description) -> str:
    """Counting, position, attribute binding, several of these, or none."""
    numerical = any(group.n > 1 for group in description.groups)
    spatial = description.relation is not None
    binding = len(description.groups) > 1 and not spatial
    if numerical + spatial + binding > 1 or (spatial and len(description.groups) > 2):
        return "mixed"
    if numerical:
        return "numerical"
    if spatial:
        return "spatial"
    return "semantic" if binding or description.absent else "null"


RANGE = 10_000_000

FIRST_INDEX = {"train": 0, "val": RANGE, "rec_val": 2 * RANGE, "rec_test": 3 * RANGE, "prompts": 4 * RANGE}
"""First scene of each part; no scene is in two parts, whatever their sizes."""


KINDS_OF_DATASET = {
    "refcoco": tuple(KINDS),
    "refcoco+": ("attributes",),  # its annotators could not use words of position
    "refcocog": ("attributes", "relation"),
}

CAPTIONS_PER_IMAGE = 2

NEGATIVE_CAPTIONS = 3

NEGATIVE_IMAGES = 2

TRIES = 64


@dataclass(frozen=True)
class Plan:
    """Options of an export."""

    num: int
    val: int
    seed: int
    world: str
    format: str = "jpg"


def export_scenes(plan: Plan, out: Path) -> None:
    with atomic_folder(out) as folder:
        Export(plan, folder).write()


class Export:
    """Renders the images of one export, gives them ids, and collects their annotations."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder, self.world = plan, folder, WORLDS[plan.world]
        self.images: dict[str, list[Record]] = {"train2014": [], "val2014": []}
        self.captions: dict[str, list[tuple[int, str]]] = {"train2014": [], "val2014": []}
        self.hard: dict[str, list[HardNegatives]] = {"train": [], "val": []}
        self.referred: dict[tuple[str, str], list[SceneReferral]] = {}
        self.negatives_by_type = {
            "captions": dict.fromkeys(NEGATIVE_TYPES, 0),
            "images": dict.fromkeys(NEGATIVE_TYPES, 0),
        }
        self.next_image_id = 0

    def write(self) -> None:
        plan = self.plan
        with self._open("scenes.jsonl") as self.scenes, self._open("negatives.jsonl") as self.negatives:
            for index, scene in self._scenes("train", plan.num):
                image = self._add_image("train2014", scene, part="train", index=index)
                self._refer(scene, image, index, "train", tuple(layout.REC_SPLITS))
                self._contrast(scene, image, index, "train")
            for index, scene in self._scenes("val", plan.val):
                self._contrast(scene, self._add_image("val2014", scene, part="val", index=index), index, "val")
            for part, splits_of in (("rec_val", _val_split), ("rec_test", _test_split)):
                for index, scene in self._scenes(part, plan.val):
                    image = self._add_image("train2014", scene, part=part, index=index)
                    self._caption(scene, image, index, "train2014")
                    for dataset in layout.REC_SPLITS:
                        self._refer(scene, image, index, splits_of(dataset, index), (dataset,))
        self._write_annotations()

    def _scenes(self, part: str, n: int) -> Iterator[tuple[int, Scene]]:
        first = FIRST_INDEX[part]
        for index in tqdm(range(first, first + n), desc=part, unit="scene"):
            yield index, make_scene(self.plan.seed, index, self.world)

    def _rng(self, index: int, purpose: str) -> KeyedRandom:
        return KeyedRandom("export", self.plan.seed, index, purpose)

    def _add_image(self, split: str, scene: Scene, **origin: object) -> Record:
        file_name = image_name(split, self.next_image_id, self.plan.format)
        image = image_record(self.next_image_id, file_name, scene)
        self.next_image_id += 1
        _save(scene, _in(self.folder, layout.IMAGES / split / file_name))
        line = {"id": image["id"], "file_name": file_name, "split": split, **origin, "scene": asdict(scene)}
        print(json.dumps(line), file=self.scenes)
        if "negative_type" not in origin:
            self.images[split].append(image)
        return image

    def _caption(self, scene: Scene, image: Record, index: int, split: str) -> None:
        rng = self._rng(index, "caption")
        self.captions[split].append((image["id"], caption_text(describe_scene(scene, self.world, rng), rng)))

    def _refer(self, scene: Scene, image: Record, index: int, split: str, datasets: tuple[str, ...]) -> None:
        texts = set()
        for dataset in datasets:
            rng = self._rng(index, f"refer {dataset}")
            expression = referring_expression(scene, self.world, rng, KINDS_OF_DATASET[dataset])
            if expression is not None and expression.text not in texts:
                texts.add(expression.text)
                name = "refall" if split == "train" else dataset
                shape = scene.objects[expression.target].shape
                self.referred.setdefault((name, split), []).append(SceneReferral(image, expression, shape, dataset))

    def _contrast(self, scene: Scene, image: Record, index: int, part: str) -> None:
        """Captions of the image, each with hard negative captions and images."""
        split = f"{part}2014"
        for nth in range(CAPTIONS_PER_IMAGE):
            caption, negatives, changed = self._hard_negatives(scene, self._rng(index, f"contrast {nth}"))
            files = [
                self._add_image(split, other, part=part, changed_from=image["file_name"], negative_type=kind)[
                    "file_name"
                ]
                for kind, other in changed
            ]
            row = HardNegatives(image["file_name"], caption.text, tuple(c.text for _, c in negatives), tuple(files))
            types = {"neg_caption": [kind for kind, _ in negatives], "neg_image": [kind for kind, _ in changed]}
            line = {"part": part, "id": len(self.hard[part]), "filepath": row.file_name, "types": types}
            print(json.dumps(line), file=self.negatives)
            for what, kinds in zip(("captions", "images"), types.values(), strict=True):
                for kind in kinds:
                    self.negatives_by_type[what][kind] += 1
            self.hard[part].append(row)
            self.captions[split].append((image["id"], caption.text))

    def _hard_negatives(
        self, scene: Scene, rng: KeyedRandom
    ) -> tuple[Caption, list[tuple[str, Caption]], list[tuple[str, Scene]]]:
        for _ in range(TRIES):
            right = describe_scene(scene, self.world, rng)
            negatives = self._false_captions(right, scene, rng)
            changed = self._changed_scenes(right, scene, rng)
            if negatives and changed:
                return Caption(caption_text(right, rng), right.facts), negatives, changed
        raise AssertionError(f"no hard negative can be made of {scene} in the {self.plan.world} world")

    def _false_captions(self, right: Description, scene: Scene, rng: KeyedRandom) -> list[tuple[str, Caption]]:
        negatives = []
        for kind in rng.sample(NEGATIVE_TYPES, len(NEGATIVE_TYPES)):
            description = false_description(right, scene, kind, self.world, rng)
            if description is not None:
                negatives.append((kind, Caption(caption_text(description, rng), description.facts)))
        return negatives[:NEGATIVE_CAPTIONS]

    def _changed_scenes(self, right: Description, scene: Scene, rng: KeyedRandom) -> list[tuple[str, Scene]]:
        changed = []
        for kind in rng.sample(NEGATIVE_TYPES, len(NEGATIVE_TYPES)):
            other = false_scene(right, scene, kind, self.world, rng)
            if other is not None:
                changed.append((kind, other))
        return changed[:NEGATIVE_IMAGES]

    def _write_annotations(self) -> None:
        for split, images in self.images.items():
            captions = captions_file(images, self.captions[split])
            self._json(layout.CAPTIONS / f"captions_{split}.json", captions)
        expressions = self._write_expressions()
        for part, rows in self.hard.items():
            table = layout.ITM / (layout.HARD_NEGATIVES.format(split=part) + ".tsv")
            _in(self.folder, table).write_text(hard_negatives_table(rows), encoding="utf-8", newline="\n")
        self._write_hard_negatives_by_caption()
        prompts = alignment_prompts(self.plan.seed, FIRST_INDEX["prompts"], self.plan.val, self.world)
        self._json(layout.PROMPTS, prompts)
        counts = {
            "image_files": self.next_image_id,
            "images": {split: len(images) for split, images in self.images.items()},
            "captions": {split: len(captions) for split, captions in self.captions.items()},
            "expressions": expressions,
            "hard_negatives": {part: len(rows) for part, rows in self.hard.items()},
            "hard_negatives_by_type": self.negatives_by_type,
            "prompts": len(prompts),
        }
        self._json(Path("manifest.json"), {**asdict(self.plan), "first_scene": FIRST_INDEX, "counts": counts})

    def _write_expressions(self) -> dict[str, int]:
        counts, first = {}, 0
        names = [("refall", "train")]
        names += [(name, split) for name, splits in layout.REC_SPLITS.items() for split in splits]
        for name, split in names:
            referred = self.referred.get((name, split), [])
            self._json(layout.REC / f"finetune_{name}_{split}.json", referring_file(referred, first))
            first += len(referred)
            counts[f"{name}_{split}"] = len(referred)
        return counts

    def _write_hard_negatives_by_caption(self) -> None:
        """Write one small file per caption, the form that training reads fastest."""
        rows = self.hard["train"]
        folder = layout.ITM / layout.HARD_NEGATIVES.format(split="train")
        self._json(folder / layout.CAPTIONS_OF_IMAGES, captions_of_images(rows))
        for id_, row in enumerate(rows):
            self._json(folder / f"{id_:05d}.json", row.record)

    def _json(self, path: Path, content: Any) -> None:
        indent = 1 if path.name == "manifest.json" else None
        text = json.dumps(content, indent=indent) + "\n"
        _in(self.folder, path).write_text(text, encoding="utf-8", newline="\n")

    def _open(self, name: str) -> TextIO:
        return (self.folder / name).open("w", encoding="utf-8", newline="\n")


def _val_split(dataset: str, index: int) -> str:
    return "val"


def _test_split(dataset: str, index: int) -> str:
    if dataset == "refcocog":
        return "test"
    return "testA" if index % 2 == 0 else "testB"


def _save(scene: Scene, file: Path) -> None:
    picture = Image.fromarray(render(scene))
    if file.suffix == ".png":
        picture.save(file)
    else:
        picture.save(file, quality=95, subsampling="4:4:4")


def _in(folder: Path, path: Path) -> Path:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
