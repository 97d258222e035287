"""Encoders of referring expressions, and from characters to tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpt.adapter.model import (
    BackbonePhraseEncoder,
    EncodedPhrases,
    PretrainedPhraseEncoder,
    open_phrase_encoder,
    token_map,
)
from dpt.backbone import Backbone, open_backbone
from dpt.errors import UserError
from tests import tiny_models, tiny_roberta
from tests.tiny_models import POCKET, SD2_BASE
from tests.tiny_roberta import ROOM

CAPTIONS = ["the red circle on the left", "a star"]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_roberta.save(tmp_path_factory.mktemp("roberta"))


@pytest.fixture(scope="module", params=[POCKET, SD2_BASE], ids=lambda model: model.name)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_backbone(tiny_models.save(request.param, tmp_path_factory.mktemp("model") / "m"), device="cpu")


def spelled(phrases: EncodedPhrases, row: int, caption: str) -> list[str]:
    return [caption[begin:end] for begin, end in phrases.offsets[row].tolist() if begin < end]


def test_backbone_encoder_gives_a_state_per_token(backbone: Backbone) -> None:
    encoder = open_phrase_encoder("backbone", backbone)
    phrases = encoder.encode(CAPTIONS)
    assert encoder.width == phrases.states.shape[2] == backbone.text_width
    assert phrases.mask.sum(dim=1).tolist() == [8, 4]  # words, start and end
    assert phrases.states.shape[:2] == phrases.mask.shape == phrases.offsets.shape[:2] == (2, 8)
    assert [spelled(phrases, i, caption) for i, caption in enumerate(CAPTIONS)] == [text.split() for text in CAPTIONS]
    assert torch.equal(phrases.states, backbone.encode_text(CAPTIONS).states[:, :8])
    assert not phrases.states.requires_grad


def test_given_conditions_are_not_encoded_again(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    text = backbone.encode_text(CAPTIONS)
    monkeypatch.setattr(backbone, "encode_text", None)
    assert torch.equal(BackbonePhraseEncoder(backbone).encode(CAPTIONS, text).states, text.states[:, :8])


def test_caption_longer_than_the_encoder_is_truncated(backbone: Backbone, roberta: Path) -> None:
    long = "red " * 100
    assert BackbonePhraseEncoder(backbone).encode([long]).states.shape[1] == backbone.prompt_length
    assert PretrainedPhraseEncoder.open(roberta).encode([long]).states.shape[1] == ROOM


def test_encoder_opens_from_a_folder(roberta: Path, backbone: Backbone) -> None:
    encoder = open_phrase_encoder(str(roberta), backbone)
    phrases = encoder.encode(CAPTIONS)
    assert phrases.states.shape == (2, 28, 16)
    assert phrases.mask.sum(dim=1).tolist() == [28, 8]
    assert "".join(spelled(phrases, 1, CAPTIONS[1])).replace(" ", "") == "astar"
    alone = encoder.encode(CAPTIONS[1:])
    torch.testing.assert_close(alone.states, phrases.states[1:, :8], rtol=0, atol=1e-6)
    assert not phrases.states.requires_grad


def test_unfrozen_encoder_gets_gradients(roberta: Path, tmp_path: Path) -> None:
    frozen, trained = PretrainedPhraseEncoder.open(roberta), PretrainedPhraseEncoder.open(roberta).unfreeze()
    trained.encode(CAPTIONS).states.square().sum().backward()
    without = {name for name, p in trained.encoder.named_parameters() if p.grad is None}
    assert without == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(p.grad is None for p in frozen.encoder.parameters())
    with torch.no_grad():
        trained.encoder.embeddings.word_embeddings.weight.add_(1.0)
        expected = trained.encode(CAPTIONS).states
    trained.save(tmp_path / "saved")
    assert torch.equal(PretrainedPhraseEncoder.open(tmp_path / "saved").encode(CAPTIONS).states, expected)


def test_encoder_with_missing_tensors_is_refused(roberta: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(roberta, tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing .* first encoder.layer.0.output.dense.weight"):
        PretrainedPhraseEncoder.open(folder)


@pytest.mark.parametrize("name", ["no-such-encoder", "/no/such/folder"])
def test_missing_encoder_is_named(name: str) -> None:
    with pytest.raises(UserError, match=name):
        PretrainedPhraseEncoder.open(name)


def test_encoder_with_an_invalid_config_is_refused_before_allocation(roberta: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(roberta, tmp_path / "deep"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1_000_000}))
    with pytest.raises(UserError, match="num_hidden_layers is 1000000, which no model has"):
        PretrainedPhraseEncoder.open(folder)


OFFSETS = torch.tensor([[0, 0], [0, 3], [4, 7], [8, 12], [12, 14], [0, 0], [0, 0]])  # <s> the red circ le </s> <pad>


def test_character_spans_map_to_tokens() -> None:
    actual = token_map(OFFSETS, [[(0, 3)], [(4, 14)], [(0, 3), (8, 14)]], slots=6, normalised=False)
    assert actual.tolist() == [[0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0, 0]]


def test_spans_with_edges_beside_a_token_match_it() -> None:
    actual = token_map(OFFSETS, [[(3, 8)], [(5, 6)], [(7, 8)], [(4, 4)], []], slots=6, normalised=False)
    assert [row.nonzero().flatten().tolist() for row in actual] == [[2], [2], [], [], []]


def test_token_map_rows_sum_to_one_or_zero() -> None:
    actual = token_map(OFFSETS, [[(0, 14)], [(0, 3)], [(20, 25)]])
    assert actual.shape == (3, 256)
    torch.testing.assert_close(actual.sum(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    assert token_map(OFFSETS, []).shape == (0, 256)


def test_tokens_beyond_the_slots_are_dropped() -> None:
    actual = token_map(OFFSETS, [[(0, 14)]], slots=3)
    assert actual.tolist() == [[0.0, 0.5, 0.5, 0.0]]


def test_backbone_phrases_map_to_their_tokens(backbone: Backbone) -> None:
    phrases = BackbonePhraseEncoder(backbone).encode(CAPTIONS)
    begin = CAPTIONS[0].index("red circle")
    (row,) = token_map(phrases.offsets[0], [[(begin, begin + len("red circle"))]])
    assert row.nonzero().flatten().tolist() == [2, 3]
