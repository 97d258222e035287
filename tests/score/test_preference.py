"""The preference score by any CLIP, its files, and scores of folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

from dpt.distributed import Processes
from dpt.errors import DataError, UserError
from dpt.score import folder_scores
from dpt.score.folder_scores import prompted_pictures, read_scores, score_pictures
from dpt.score.preference import open_preference_model
from tests import tiny_models
from tests.evaluation import tiny_vision

PROMPTS = ["a red circle", "two blue squares and a star", "the cat"]
IMAGES = [np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8) for seed in range(3)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.clip(tmp_path_factory.mktemp("clip"))


def openai_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same model under OpenAI's names, written out by hand."""
    named = {
        "logit_scale": state["logit_scale"],
        "visual.proj": state["visual_projection.weight"].T,
        "text_projection": state["text_projection.weight"].T,
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "input_resolution": torch.tensor(32),
    }
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}
    for old, new in {**norms, "ln_final": "text_model.final_layer_norm"}.items():
        named |= {f"{old}.{kind}": state[f"{new}.{kind}"] for kind in ("weight", "bias")}
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for tower, prefix in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for layer in range(2):
            source, target = f"{tower}.encoder.layers.{layer}", f"{prefix}.resblocks.{layer}"
            for kind in ("weight", "bias"):
                for old, new in {**names, "attn.out_proj": "self_attn.out_proj"}.items():
                    named[f"{target}.{old}.{kind}"] = state[f"{source}.{new}.{kind}"]
                rows = [state[f"{source}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                named[f"{target}.attn.in_proj_{kind}"] = torch.cat(rows)
    return named


def image_features_by_hand(w: dict[str, Tensor], pixels: Tensor, heads: int = 2) -> Tensor:
    """OpenAI's image tower with QuickGELU, on torch's own attention: independent of transformers."""
    width = w["visual.conv1.weight"].shape[0]
    x = F.conv2d(pixels, w["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1) + w["visual.positional_embedding"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"])

    x = norm(x, "visual.ln_pre")
    for layer in range(2):
        at = f"visual.transformer.resblocks.{layer}"
        attention = nn.MultiheadAttention(width, heads, batch_first=True)
        parts = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        attention.load_state_dict({part: w[f"{at}.attn.{part}"] for part in parts})
        y = norm(x, f"{at}.ln_1")
        x = x + attention(y, y, y)[0]
        h = F.linear(norm(x, f"{at}.ln_2"), w[f"{at}.mlp.c_fc.weight"], w[f"{at}.mlp.c_fc.bias"])
        x = x + F.linear(h * torch.sigmoid(1.702 * h), w[f"{at}.mlp.c_proj.weight"], w[f"{at}.mlp.c_proj.bias"])
    return F.normalize(norm(x[:, 0], "visual.ln_post") @ w["visual.proj"], dim=-1)


def test_weights_with_openai_names_give_the_scores_of_the_same_model(clip: Path, tmp_path: Path) -> None:
    model = open_preference_model(str(clip), device="cpu")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    expected = model.scores(IMAGES, PROMPTS)
    assert all(-100 <= score <= 100 for score in expected) and len(set(expected)) == 3
    weights = openai_weights(model.clip.state_dict())
    torch.save({"state_dict": weights}, tmp_path / "hpc.pth")
    opened = open_preference_model(str(tmp_path / "hpc.pth"), str(clip), device="cpu")
    assert opened.scores(IMAGES, PROMPTS) == pytest.approx(expected, abs=1e-4)
    pixels = opened.inputs.pixels(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(
            opened.image_features(pixels), image_features_by_hand(weights, pixels), atol=1e-5, rtol=1e-4
        )
    assert model.scores(IMAGES[:1], PROMPTS[:1])[0] == pytest.approx(
        100 * float(opened.cosines(pixels[:1], opened.inputs.tokens(PROMPTS[:1]), [1]).detach()), abs=1e-3
    )


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
def test_gelu_is_refused_where_quick_gelu_was_trained(clip: Path, tmp_path: Path, hidden_act: str) -> None:
    model = open_preference_model(str(clip), device="cpu")
    torch.save(openai_weights(model.clip.state_dict()), tmp_path / "hpc.pth")
    other = shutil.copytree(clip, tmp_path / "clip")
    config = json.loads((other / "config.json").read_text())
    config["vision_config"]["hidden_act"] = config["text_config"]["hidden_act"] = hidden_act
    (other / "config.json").write_text(json.dumps(config))
    if hidden_act == "quick_gelu":
        open_preference_model(str(tmp_path / "hpc.pth"), str(other), device="cpu")
        return
    with pytest.raises(UserError, match=r"was trained with quick_gelu, and the CLIP .* computes gelu: give a --clip"):
        open_preference_model(str(tmp_path / "hpc.pth"), str(other), device="cpu")


def test_files_that_are_no_scorer_end_in_a_sentence(clip: Path, tmp_path: Path) -> None:
    weights = openai_weights(open_preference_model(str(clip), device="cpu").clip.state_dict())
    other = {**weights, "visual.proj": torch.zeros(16, 12)}
    faults: list[tuple[Any, str | None, str]] = [
        ({"state_dict": other}, str(clip), "visual_projection.weight is 12 x 16|12x16"),
        ({"x": 1}, str(clip), "is not a CLIP checkpoint"),
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, str(clip), "a ResNet CLIP"),
        (weights, None, "holds weights alone: give --clip"),
        ({**weights, "head.weight": torch.zeros(1)}, str(clip), "holds head.weight, which no CLIP"),
    ]
    for content, base, message in faults:
        torch.save(content, tmp_path / "hpc.pth")
        with pytest.raises(UserError, match=message):
            open_preference_model(str(tmp_path / "hpc.pth"), base, device="cpu")
    torch.save(weights, tmp_path / "hpc.pth")
    damaged = bytearray((tmp_path / "hpc.pth").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "hpc.pth").write_bytes(damaged)
    with pytest.raises(UserError, match=r"is damaged: .* in it is not what was saved"):
        open_preference_model(str(tmp_path / "hpc.pth"), str(clip), device="cpu")
    (tmp_path / "hpc.pth").write_bytes(b"PK truncated")
    with pytest.raises(UserError, match="truncated, not a checkpoint"):
        open_preference_model(str(tmp_path / "hpc.pth"), str(clip), device="cpu")


def test_a_siglip_scores_too_and_a_missing_processor_comes_from_another_model(clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = tiny_models.tokenizer(16, words=tiny_vision.WORDS)
    text = {**tiny_vision.NARROW, "vocab_size": len(tokens), "max_position_embeddings": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=tiny_vision.VISION))
    for part in (model, SiglipImageProcessorPil(size=tiny_vision.SQUARE), tokens):
        part.save_pretrained(tmp_path / "siglip")
    siglip = open_preference_model(str(tmp_path / "siglip"), device="cpu")
    scores = siglip.scores(IMAGES, PROMPTS)
    assert len({round(score, 3) for score in scores}) == 3 and siglip.inputs.length == 16
    bare = shutil.copytree(clip, tmp_path / "pickscore")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json: give --clip"):
        open_preference_model(str(bare), device="cpu")
    assert open_preference_model(str(bare), str(clip), "cpu").scores(IMAGES, PROMPTS) == open_preference_model(
        str(clip), device="cpu"
    ).scores(IMAGES, PROMPTS)


class Brightness:
    identity = "brightness"

    def __init__(self) -> None:
        self.batches = 0

    def scores(self, images: Any, prompts: Any) -> list[float]:
        self.batches += 1
        return [float(np.mean(image)) / 10 for image in images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for number in range(40):
        Image.new("RGB", (8, 8), (6 * number, 0, 90)).save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "caption": f"prompt {number // 4}"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_scores_of_several_processes_and_of_a_killed_run_are_those_of_one(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pictures = prompted_pictures(folder)
    out = tmp_path_factory.mktemp("scores")
    score_pictures(pictures, folder, Brightness(), out / "one.jsonl")
    expected = (out / "one.jsonl").read_text()
    lines = [json.loads(line) for line in expected.splitlines()]
    assert [line["id"] for line in lines] == list(range(40)) and all(line["blurry"] for line in lines)

    class OneOfTwo(Processes):
        """The first process of two whose collectives are answered by itself."""

        def gather(self, make: Any) -> list[Any]:
            return [make()]

        def barrier(self) -> None:
            raise KeyboardInterrupt

    scorer = Brightness()
    for rank in range(2):
        with pytest.raises(KeyboardInterrupt):
            score_pictures(pictures, folder, scorer, out / "two.jsonl", OneOfTwo(rank, 2))
    part = out / "two.part-0.jsonl"
    part.write_bytes(part.read_bytes()[:-20])  # killed while writing
    score_pictures(pictures, folder, scorer, out / "two.jsonl")
    assert (out / "two.jsonl").read_text() == expected and scorer.batches == 4
    assert list(out.glob("*.part-*")) == []
    score_pictures(pictures, folder, scorer, out / "two.jsonl")
    assert scorer.batches == 4
    with pytest.raises(UserError, match="holds scores of other pictures: choose another --out"):
        score_pictures(pictures[:3], folder, scorer, out / "two.jsonl")


def test_unreadable_images_are_counted_and_the_rest_is_scored(folder: Path) -> None:
    (folder / "5.png").write_bytes(b"nothing")
    result = score_pictures(prompted_pictures(folder), folder, Brightness(), folder / "s.jsonl")
    assert len(result.scored) == 39 and len(result.skipped) == 1 and "5.png" in result.skipped[0]
    meta = folder / "meta.json"
    meta.write_text(json.dumps([{"file_name": "7.png", "caption": "another"}]))
    (one,) = score_pictures(prompted_pictures(folder, meta), folder, Brightness(), folder / "m.jsonl").scored
    assert (one.prompt, one.file_name) == ("another", "7.png")
    (folder / "bad.jsonl").write_text('{"id": 1, "prompt": "p", "score": NaN}\n')
    with pytest.raises(DataError, match="line 1"):
        list(read_scores(folder / "bad.jsonl"))
    assert folder_scores.BATCH == 16
