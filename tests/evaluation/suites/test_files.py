"""Suites from files: their claims, and errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpt.claims.facts import ColourOfBest, Count, FewerThan, Noun, RelationOfBest
from dpt.errors import UserError
from dpt.evaluation.suites import registry
from dpt.evaluation.suites.base import Suite, image_file

CAR, DOG = Noun(shape="car"), Noun(shape="dog")


def metadata(**changes: Any) -> dict[str, Any]:
    return {"tag": "counting", "prompt": "two cars", "include": [{"class": "car", "count": 2}], **changes}


def geneval(tmp_path: Path, *lines: dict[str, Any]) -> Suite:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return registry.load(f"geneval={file}")


def test_geneval_metadata_becomes_claims(tmp_path: Path) -> None:
    suite = geneval(
        tmp_path,
        metadata(exclude=[{"class": "car", "count": 3}]),
        metadata(tag="color_attr", include=[{"class": "car", "count": 1, "color": "red"}]),
        metadata(tag="position", include=[{"class": "dog", "count": 1},
                                          {"class": "car", "count": 1, "position": ["left of", 0]}]),
    )  # fmt: skip
    assert [prompt.facts for prompt in suite.prompts] == [
        (Count(CAR, 2, exact=False), FewerThan(CAR, 3)),
        (Count(CAR, 1, exact=False), ColourOfBest(Noun("red", "car"), 1)),
        (Count(DOG, 1, exact=False), Count(CAR, 1, exact=False), RelationOfBest(CAR, 1, "left", DOG, 1)),
    ]
    assert suite.judge == "geneval-owl" and suite.needs_colours
    assert json.loads(suite.prompts[1].source)["tag"] == "color_attr"
    assert image_file(suite.layout, suite.prompts[2].id, 3) == Path("00002/samples/0003.png")
    assert suite.detect_config is not None and list(suite.detect_config.phrases(suite.prompts[1])) == ["car"]


@pytest.mark.parametrize(
    ("line", "message"),
    [(metadata(colour="red"), "line 2: unknown key 'colour'; known are tag, prompt"),
     (metadata(tag="counts"), "line 2: there is no task 'counts'"),
     (metadata(include=[{"class": "car", "count": 1, "size": 3}]), "line 2, 'include'|line 2: unknown key 'size'"),
     (metadata(include=[{"class": "car"}]), "line 2: 'count' must be an integer >= 1, not None"),
     (metadata(include=[{"class": "car", "count": True}]), "line 2: 'count' must be an integer"),
     (metadata(include=[{"class": "car", "count": 1, "color": "grue"}]), "line 2: there is no colour 'grue'"),
     (metadata(include=[]), "line 2: 'include' is empty"),
     (metadata(include="car"), "line 2: 'include' must be a list"),
     (metadata(include=["car"]), "line 2, 'include': expected an object"),
     (metadata(prompt=" "), "line 2: 'prompt' must be a non-empty string"),
     (metadata(include=[{"class": "car", "count": 1, "position": ["left of", 0]}]), "line 2: 'position' must be"),
     (metadata(include=[{"class": "car", "count": 1, "position": "left of"}]), "line 2: 'position' must be")],
)  # fmt: skip
def test_geneval_errors_name_the_line(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        geneval(tmp_path, metadata(), line)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "cut.jsonl"
    file.write_text(json.dumps(metadata()) + "\n" + json.dumps(metadata())[:30])
    for name in ("geneval", "prompts"):
        with pytest.raises(UserError, match=r"cut.jsonl, line (1: unknown key|2 is not valid JSON)"):
            registry.load(f"{name}={file}")


def test_a_text_file_has_a_prompt_per_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red car\n\n  two dogs \n")
    suite = registry.load(f"prompts={file}")
    assert [(prompt.id, prompt.text) for prompt in suite.prompts] == [("00001", "a red car"), ("00003", "two dogs")]
    assert suite.detect_config is None and suite.prompts[1].where == f"{file}, line 3"


def test_jsonl_prompts_have_ids_and_categories(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a car", "id": "first", "category": "cars"}\n{"prompt": "a dog", "id": 7}\n')
    suite = registry.load(f"prompts={file}")
    prompts = [(prompt.id, prompt.category, prompt.text) for prompt in suite.prompts]
    assert prompts == [("first", "cars", "a car"), ("7", "prompts", "a dog")]
    assert registry.load(f"prompts={file}", ("cars",)).prompts == suite.prompts[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"prompt": "a", "seed": 1}', "line 1: unknown key 'seed'"),
     ('{"prompt": "a", "id": "../a"}', "line 1: 'id' is used in file names"),
     ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "line 2: duplicate id 'x', first used in .* line 1"),
     ('{"text": "a"}', "line 1: unknown key 'text'"), ("[]", "line 1: expected an object"),
     ("", "has no prompts")],
)  # fmt: skip
def test_prompt_file_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        registry.load(f"prompts={file}")


@pytest.mark.parametrize("key", ["caption", "captions"])
def test_coco_captions_and_categories(tmp_path: Path, key: str) -> None:
    file = tmp_path / "five_category.json"
    file.write_text(json.dumps([{"img_id": 5, "name": "spatial", key: "a car left of a dog", "bbox": []}]))
    suite = registry.load(f"coco-nss1k={file}")
    assert [(p.category, p.text) for p in suite.prompts] == [("spatial", "a car left of a dog")]
    assert suite.detect_config is None


def test_coco_without_categories_has_a_default(tmp_path: Path) -> None:
    file = tmp_path / "five_category.json"
    file.write_text(json.dumps([{"caption": "two cups beside a green bottle"}]))
    assert [prompt.category for prompt in registry.load(f"coco-nss1k={file}").prompts] == ["prompts"]


def test_the_shipped_sample_is_valid_coco() -> None:
    sample = Path(__file__).parents[3] / "data/sample/coco/annotations_processed_v1/five_category.json"
    assert registry.load(f"coco-nss1k={sample}").categories


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "must be a list"), ("[{", "is not valid JSON"),
     ('[{"name": "null"}]', "entry 0: 'caption' must be a non-empty string"),
     ('[{"name": "odd", "caption": "a"}]', "entry 0: there is no category 'odd'")],
)  # fmt: skip
def test_coco_errors_name_the_entry(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "five_category.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        registry.load(f"coco-nss1k={file}")


def test_missing_and_binary_files_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.txt"):
        registry.load(f"prompts={tmp_path / 'none.txt'}")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes.txt is not a text file"):
        registry.load(f"prompts={tmp_path / 'bytes.txt'}")
