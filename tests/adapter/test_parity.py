"""The adapter against the reference implementation, loaded through the published key names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dpt.adapter import Adapter, AdapterConfig
from dpt.adapter.model import PretrainedPhraseEncoder, token_map
from dpt.adapter.transformer import Attention, SinePositionEmbedding
from dpt.objectives.losses import match_cosines, match_score
from dpt.weights import load_strictly
from tests.golden.recipe import recipe_input, recipe_weights
from tests.golden.reference import FULL, Reference, key_shapes, load


@pytest.fixture(scope="module", params=["reduced", "full"])
def reference(request: pytest.FixtureRequest) -> Reference:
    return load(request.param)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return reference_adapter(AdapterConfig())


def reference_adapter(config: AdapterConfig) -> Adapter:
    adapter = Adapter(config).eval()
    applied = load_strictly(adapter, recipe_weights(key_shapes()), "the recipe")
    assert applied == 56
    return adapter


def feature() -> Tensor:
    return recipe_input("adapter.feat_up1", (2, 1280, 16, 16))


def pooled() -> Tensor:
    return recipe_input("adapter.pooled_text", (2, 1024))


def test_inputs_equal_those_of_the_reference() -> None:
    values = load("full")
    values.agrees("feat_up1", feature())
    values.agrees("pooled_text", pooled())


def test_encoder_outputs_equal_the_reference(adapter: Adapter, reference: Reference) -> None:
    t = reference["timesteps"]
    with torch.no_grad():
        positions = adapter.position_embedding(16, 16, t.device)
        tokens, embeddings = adapter.project(feature()), adapter.embeddings(t, 16, 16)
        memory = adapter.transformer.encoder(tokens, embeddings)
        reference.agrees("pos_embedding", as_map(positions[None], 16)[0])
        reference.agrees("time_embedding", adapter.timestep_embedding(t))
        reference.agrees("src_proj", as_map(tokens, 16))
        reference.agrees("encoder_memory", as_map(memory, 16))
        reference.agrees("decoder_out", adapter.decode(feature(), t)[None])


def test_every_head_equals_the_reference(adapter: Adapter, reference: Reference) -> None:
    with torch.no_grad():
        reading = adapter(feature(), reference["timesteps"])
        tokens = adapter.align_text(reference["roberta_last_hidden_state"])
    assert reading.grounding.queries is not None
    reference.agrees("q_emb_matching", reading.matching[None])
    reference.agrees("pred_logits", reading.grounding.logits)
    reference.agrees("pred_boxes", reading.grounding.boxes)
    reference.agrees("proj_queries", reading.grounding.queries)
    reference.agrees("proj_tokens", tokens)
    reference.agrees("logit_scale", adapter.scale)


def test_matching_only_and_grounding_only_equal_the_reference(adapter: Adapter, reference: Reference) -> None:
    with torch.no_grad():
        reference.agrees("q_emb_matching", adapter.match(feature(), reference["timesteps"])[None])
        reference.agrees("pred_boxes", adapter.ground(feature(), reference["timesteps"]).boxes)


@pytest.mark.parametrize("all_queries", [True, False])
def test_score_and_gradient_equal_the_reference(adapter: Adapter, reference: Reference, all_queries: bool) -> None:
    z = feature().requires_grad_()
    vectors = (adapter(z, reference["timesteps"]).matching) if all_queries else adapter.match(z, reference["timesteps"])
    score = match_score(vectors, pooled())
    reference.agrees("itm_cosines", match_cosines(vectors, pooled()))
    reference.agrees("itm_score", score)
    (gradient,) = torch.autograd.grad(score.sum(), z)
    # These gradients are small: the largest is 4e-6 or so, so they are compared relative to it.
    scale = float(reference["itm_score_grad_feat"].abs().max())
    reference.agrees("itm_score_grad_feat", gradient, tolerance=1e-4 * scale)


def test_tiny_roberta_equals_the_reference() -> None:
    values = load("full")
    encoder = PretrainedPhraseEncoder.open(f"{FULL}/tiny_roberta")
    phrases = encoder.encode(values.texts["rec_text"]["adapter_captions"])
    values.agrees("roberta_last_hidden_state", phrases.states)
    values.agrees("roberta_attention_mask", phrases.mask)
    spans = values.texts["rec_adapter_text"]["tokens_positive"]
    rows = [token_map(phrases.offsets[i], targets, normalised=False) for i, targets in enumerate(spans)]
    values.agrees("rec_adapter.positive_map_binary", torch.cat(rows))
    values.agrees("rec.offset_mapping", encoder.encode(values.texts["rec_text"]["captions"]).offsets)


def no_positions(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    actual = SinePositionEmbedding.forward
    monkeypatch.setattr(SinePositionEmbedding, "forward", lambda *arguments: torch.zeros_like(actual(*arguments)))
    return reference_adapter(AdapterConfig())


def swapped_axes(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    actual = SinePositionEmbedding.forward
    monkeypatch.setattr(SinePositionEmbedding, "forward", lambda *arguments: actual(*arguments).roll(128, dims=-1))
    return reference_adapter(AdapterConfig())


def codes_in_values(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    actual = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda self, query, key, value: actual(self, query, key, key))
    return reference_adapter(AdapterConfig())


def sines_first(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    import dpt.adapter.transformer as embeddings

    original = embeddings.sinusoid
    monkeypatch.setattr(embeddings, "sinusoid", lambda t, width: original(t, width).roll(width // 2, dims=-1))
    return reference_adapter(AdapterConfig())


def gelu(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    monkeypatch.setattr(torch, "relu", torch.nn.functional.gelu)
    return reference_adapter(AdapterConfig())


def no_last_norm(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    adapter = reference_adapter(AdapterConfig())
    monkeypatch.setattr(adapter.transformer.decoder, "norm", torch.nn.Identity())
    return adapter


def pre_norm(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    weights = recipe_weights(key_shapes())
    gain, bias = torch.ones(256), torch.zeros(256)
    weights |= {"transformer.encoder.norm.weight": gain, "transformer.encoder.norm.bias": bias}
    adapter = Adapter(AdapterConfig(pre_norm=True)).eval()
    load_strictly(adapter, weights, "the recipe")
    return adapter


def grounding_first(monkeypatch: pytest.MonkeyPatch) -> Adapter:
    adapter = reference_adapter(AdapterConfig())
    decode = adapter.decode
    monkeypatch.setattr(adapter, "decode", lambda *arguments: decode(*arguments).roll(10, dims=1))
    return adapter


WRONG = (no_positions, swapped_axes, codes_in_values, sines_first, gelu, no_last_norm, pre_norm, grounding_first)


@pytest.mark.parametrize("variant", WRONG, ids=lambda variant: variant.__name__)
def test_deviating_variants_are_detected(
    variant: Callable[[pytest.MonkeyPatch], Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = load("reduced")
    with torch.no_grad():
        reading = variant(monkeypatch)(feature(), values["timesteps"])
    assert values.distance("pred_logits", reading.grounding.logits) > 1e-3
    assert values.distance("pred_boxes", reading.grounding.boxes) > 1e-4


def as_map(tokens: Tensor, height: int) -> Tensor:
    """(B,h*w,d) to (B,d,h,w)."""
    return tokens.transpose(1, 2).unflatten(2, (height, -1))
