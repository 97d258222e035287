"""The transformer pocket: captions, text encoders, denoiser and instruments, with tiny models."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from dpt.claims.facts import Noun, Related, all_hold
from dpt.claims.words import vocabulary
from dpt.cli.main import run
from dpt.data.scenes.world import POCKET_WORLD, make_scene
from dpt.errors import UserError
from dpt.keyed_random import KeyedRandom
from dpt.pocket.alt_text import AltTextConfig, CaptionLabels, alt_text, parse_words, random_caption
from dpt.pocket.clip import IGNORED, TeachingRecipe, build_tokenizer, label_captions, rescale, tokens, word_encoder
from dpt.pocket.diagnose import WORD_CLASSES, probe_accuracies, swap_word, word_effects
from dpt.pocket.mmdit import (
    MMDiTRecipe,
    PromptEncoders,
    PromptStates,
    TransformerPhase,
    TransformerRecipe,
    build_transformer,
    predict_velocity,
    read_mmdit_recipe,
    zero_t5,
)
from dpt.pocket.training import Schedule
from dpt.records import to_plain

ROOT = Path(__file__).parent.parent.parent
POCKET = ROOT / "ckpt/pocket"


def test_captions_in_any_wording_are_parsed() -> None:
    parsed = parse_words("a picture of two red boxes to the left of a disc without any blue crosses")
    phrases = [(phrase.n, phrase.noun.colour, phrase.noun.shape, phrase.head) for phrase in parsed.phrases]
    assert phrases == [(2, "red", "square", 5), (1, None, "circle", 11)]
    assert parsed.relation == "left" and parsed.absent == Noun("blue", "cross")
    assert parsed.on_side("left") == Noun("red", "square") and parsed.on_side("above") is None
    for text in ("colourful shapes", "shapes on a plain background", "a picture", ""):
        assert parse_words(text).phrases == ()


def test_random_captions_state_nothing_held_out() -> None:
    for i in range(300):
        parsed = parse_words(random_caption(POCKET_WORLD, KeyedRandom(i)))
        kinds = {(phrase.noun.colour, phrase.noun.shape) for phrase in parsed.phrases}
        assert kinds and not kinds & set(POCKET_WORLD.held_out_kinds)
        if parsed.relation:
            a, b = (phrase.noun.shape for phrase in parsed.phrases[:2])
            assert (a, parsed.relation, b) not in POCKET_WORLD.held_out_relations


def fraction_of_false_relations(config: AltTextConfig, n: int = 400) -> float:
    false = total = 0
    for i in range(n):
        scene = make_scene(1, i, POCKET_WORLD)
        parsed = parse_words(alt_text(scene, POCKET_WORLD, KeyedRandom("false", i), config))
        if parsed.relation and parsed.phrases[0].noun.colour and len(scene.objects) == 2:
            total += 1
            fact = Related(parsed.phrases[0].noun, parsed.relation, parsed.phrases[1].noun)
            false += not all_hold([fact], scene.objects)
    return false / total


def test_relations_are_false_as_often_as_configured() -> None:
    assert fraction_of_false_relations(AltTextConfig(relation=0.9)) == 0
    assert 0.2 < fraction_of_false_relations(AltTextConfig(relation=0.9, flipped_relation=0.3)) < 0.42


def test_labels_are_at_head_words_and_end_tokens() -> None:
    labels, tokenizer = CaptionLabels(POCKET_WORLD), build_tokenizer(vocabulary(), 16)
    batch = label_captions(["a red circle above two squares"], tokenizer, labels)
    assert batch.phrases[0, 3].tolist() == [1, POCKET_WORLD.colours.index("red"), 0]
    assert batch.phrases[0, 6].tolist() == [2, len(POCKET_WORLD.colours), 1]
    assert int((batch.phrases[..., 0] != IGNORED).sum()) == 2
    assert int(batch.ends.sum()) == 16 - 7 and int((batch.words != IGNORED).sum()) == 6
    assert len(labels.groups) == len(labels.caption_sizes) == batch.captions.shape[1]
    assert all(0 <= label < size for label, size in zip(batch.captions[0].tolist(), labels.caption_sizes, strict=True))


def tiny_encoders() -> PromptEncoders:
    tokenizer = build_tokenizer(vocabulary(), 16)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=16, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    first = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    return PromptEncoders(first, word_encoder(config, 8, 0), tokenizer)


@pytest.mark.parametrize("zeros", [0, 1, 256])
def test_one_zero_token_equals_all_that_the_stock_pipeline_appends(zeros: int) -> None:
    torch.manual_seed(0)
    recipe = TransformerRecipe(layers=2, heads=2, head_width=8)
    model = build_transformer(recipe, 4, 8, 24, 24).eval().requires_grad_(False)
    prompt = PromptStates(torch.randn(2, 16, 24), torch.randn(2, 24))
    noisy, sigma = torch.randn(2, 4, 8, 8), torch.tensor([0.9, 0.3])
    ours = predict_velocity(model, noisy, sigma, prompt, torch.full((2,), zeros))
    model.set_attn_processor(JointAttnProcessor2_0())
    states = torch.cat([prompt.states, torch.zeros(2, zeros, 24)], 1)
    stock = model(noisy, states, prompt.pooled, sigma * 1000, return_dict=False)[0]
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)


def test_rescaling_changes_the_states_by_one_factor_only() -> None:
    encoders = tiny_encoders()
    with torch.no_grad():  # so large that the epsilon of the layer norms does not matter
        encoders.first.text_model.embeddings.token_embedding.weight.mul_(1000)
    ids = tokens(encoders.tokenizer, ["a red circle", "two blue squares without crosses"])
    before = encoders.first(ids, output_hidden_states=True)
    factor = rescale(encoders.first, ids)
    after = encoders.first(ids, output_hidden_states=True)
    torch.testing.assert_close(after.hidden_states[-2] * factor, before.hidden_states[-2], atol=2e-2, rtol=1e-3)
    assert abs(float(after.hidden_states[-2].std()) - 1) < 1e-3
    assert abs(float(after.text_embeds.std()) - 1) < 0.1


def test_the_third_text_encoder_gives_zeros() -> None:
    encoder, tokenizer = zero_t5(24)
    ids = tokenizer(["a red circle"], padding="max_length", max_length=32, return_tensors="pt").input_ids
    assert ids.shape == (1, 32) and not encoder(ids)[0].any()


def test_a_swap_keeps_the_length_and_changes_the_words() -> None:
    captions = [random_caption(POCKET_WORLD, KeyedRandom(i)) for i in range(200)]
    for kind in WORD_CLASSES:
        swapped = [(text, swap_word(text, kind, POCKET_WORLD, KeyedRandom(text))) for text in captions]
        pairs = [(a, b) for a, b in swapped if b is not None]
        assert pairs and all(len(a.split()) == len(b.split()) and a != b for a, b in pairs), kind


def test_diagnostics_separate_kept_words_from_lost_ones() -> None:
    """With an encoder that encodes all labels of a caption except its relation."""
    labels = CaptionLabels(POCKET_WORLD)

    def encode(texts: list[str]) -> PromptStates:
        columns = torch.tensor([labels.caption(parse_words(text)) for text in texts])
        one_hot = [
            torch.nn.functional.one_hot(column, size).float()
            for column, size, group in zip(columns.T, labels.caption_sizes, labels.groups, strict=True)
            if group == "count"
        ]
        states = torch.cat(one_hot, 1)
        return PromptStates(states[:, None], states)

    effects = word_effects(encode, n=4)
    assert effects["relation"]["pooled"] == 0 < effects["colour"]["pooled"]
    accuracies = probe_accuracies(encode, n=400, test=100)["pooled"]
    assert accuracies["count"] > 0.9 and accuracies["relation"] < 0.8


def schedule(steps: int) -> Schedule:
    return Schedule(steps=steps, batch=4, learning_rate=1e-3, warmup=1, decay=1)


PHASE = TransformerPhase(0, AltTextConfig(flipped_relation=0.3), (("single", 1.0), ("pair", 1.0)))

TINY = MMDiTRecipe(
    seed=3,
    world="pocket",
    words_width=8,
    text_tokens=16,
    text=TeachingRecipe(dataclasses.replace(schedule(3), dtype="float32")),
    transformer=TransformerRecipe(
        layers=1, heads=2, head_width=8, latents=40, gap=0.0, phases=(PHASE,), schedule=schedule(4)
    ),
)

STOCK = """
import sys, torch
from diffusers import StableDiffusion3Pipeline
pipe = StableDiffusion3Pipeline.from_pretrained(sys.argv[1], local_files_only=True)
assert pipe("a red circle", num_inference_steps=2).images[0].size == (64, 64)
assert not any(name.split(".")[0] == "dpt" for name in sys.modules)
"""


def building_in(root: Path) -> Callable[..., Path]:
    recipe = root / "recipe.json"
    recipe.write_text(json.dumps(to_plain(TINY)))

    def command(name: str, *words: str) -> Path:
        folders = ["--work", str(root / f"{name}-work"), "--out", str(root / name), "--start", str(POCKET)]
        run(["pocket", "build", "--recipe", str(recipe), *folders, "--threads", "1", *words])
        return root / name

    return command


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    return building_in(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building_in(tmp_path_factory.mktemp("built"))("whole")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 5
    return {f"{file.parent.name}/{key}": v for file in files for key, v in load_file(file).items()}


@pytest.mark.nightly
def test_built_transformer_opens_with_diffusers_alone(built: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", STOCK, str(built)], check=True, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("shipped", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_model_is_diagnosed(shipped: bool, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--captions", "50", "--pairs", "2", "--noises", "1"]
    run(["pocket", "diagnose", "--model", str(POCKET if shipped else built), "--out", str(tmp_path / "d.json"), *sizes])
    result = json.loads((tmp_path / "d.json").read_text())
    assert set(result["words"]) == set(WORD_CLASSES) and set(result["probes"]) == {"last_token", "pooled"}
    assert len(result["layout"]["named_side"]) == len(result["layout"]["levels"]) == 3
    assert "relation_over_colour" in capsys.readouterr().out


@pytest.mark.slow
def test_stopped_build_resumes_bit_for_bit(
    built: Path, build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = weights(built)
    assert all(tensor.dtype == torch.float16 for tensor in whole.values())
    stops = 0
    for _ in range(3):
        with monkeypatch.context() as patch:
            calls = iter(range(10_000))
            patch.setattr(time, "time", lambda calls=calls: 0.0 if next(calls) < 2 else 1e9)
            build("stopped", "--minutes", "1")
        stops += "not complete yet" in capsys.readouterr().out
    assert stops >= 2
    stopped = weights(build("stopped"))
    assert whole.keys() == stopped.keys()
    assert [key for key in whole if not torch.equal(whole[key], stopped[key])] == []


def test_shipped_recipe_is_valid_and_invalid_flags_are_named(build: Callable[..., Path], tmp_path: Path) -> None:
    recipe = read_mmdit_recipe()
    assert recipe.transformer.phases and recipe.world == "pocket"
    for words, message in (
        (["--last", "unet"], "there is no stage 'unet'; the stages are text, mmdit"),
        (["--out", str(POCKET)], "would replace the model of --start"),
        (["--start", str(tmp_path)], "give the folder of a finished pocket"),
    ):
        with pytest.raises(UserError, match=message):
            build("wrong", *words)
    with pytest.raises(UserError, match=r"cannot read .*model_index\.json"):
        run(["pocket", "diagnose", "--model", str(tmp_path)])


def test_the_shipped_transformer_pocket_draws_most_single_objects() -> None:
    from dpt.backbone import open_backbone
    from dpt.pocket.measure import draw_category
    from dpt.sampling.draw import SamplingSettings

    backbone = open_backbone(ROOT / "ckpt/pocket-mmdit", device="cpu")
    images = draw_category(backbone, "single", 6, 0, SamplingSettings(12, 3.0))
    assert sum(image.verdict.passed for image in images) >= 4
