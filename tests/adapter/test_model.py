"""The adapter's shapes, sizes and options; parity has its own file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dpt.adapter import Adapter, AdapterConfig, check_fits, config_for
from dpt.errors import UserError
from dpt.records import from_plain, to_plain
from tests.golden.reference import key_shapes
from tests.tiny_models import BareUNet

STABLE_DIFFUSION = {"block_out_channels": [320, 640, 1280, 1280], "sample_size": 64}
SMALL = AdapterConfig(
    unet_feature="up0",
    feature_channels=(16,),
    text_width=12,
    text_encoder_type="backbone",
    phrase_width=12,
    hidden_dim=32,
    nheads=4,
    dim_feedforward=48,
    num_queries_matching=3,
    num_queries_rec=5,
    token_slots=20,
    contrastive_loss_hdim=8,
)


def small(**changes: Any) -> Adapter:
    torch.manual_seed(0)
    adapter = Adapter(from_plain(AdapterConfig, to_plain(SMALL) | changes, "test"))
    # Biases begin at zero; an exactness that hangs on that would be no exactness.
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return adapter.eval()


def inputs(channels: int = 16, side: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, channels, side, side + 1), torch.tensor([10, 700])


def model(match_width: int = 1024) -> BareUNet:
    return BareUNet(config=STABLE_DIFFUSION, match_width=match_width)


def on_meta(feature: str = "up1", text_width: int = 1024, **others: Any) -> Adapter:
    with torch.device("meta"):
        return Adapter(config_for(model(text_width), feature, 768, **others))


def size(module: torch.nn.Module | Tensor) -> int:
    return module.numel() if isinstance(module, Tensor) else sum(map(size, module.parameters()))


def test_keys_and_shapes_equal_the_published_ones() -> None:
    actual = {key: list(tensor.shape) for key, tensor in on_meta().state_dict().items()}
    assert actual == key_shapes()
    assert len(actual) == 56


def test_parameter_count_of_every_part_equals_the_published_one() -> None:
    adapter = on_meta()
    assert {name: size(part) for name, part in adapter.named_children()} == {
        "transformer": 2_894_336,
        "query_embed": 28_160,
        "input_proj": 327_936,
        "position_embedding": 0,
        "timestep_embedding": 525_568,
        "map_to_clip": 328_960,
        "class_embed": 65_792,
        "bbox_embed": 132_612,
        "contrastive_align_projection_image": 16_448,
        "contrastive_align_projection_text": 49_216,
    }
    assert size(adapter) == 4_369_029
    of_sd1 = on_meta(text_width=768)
    assert (size(of_sd1.map_to_clip), size(of_sd1)) == (263_168, 4_303_237)


@pytest.mark.parametrize(
    ("feature", "total"),
    [
        ("bottom0", 4_123_269),
        ("up3", 4_123_269),
        ("bottom1", 4_205_189),
        ("up2", 4_205_189),
        ("bottom2", 4_369_029),
        ("bottom3", 4_369_029),
        ("mid", 4_369_029),
        ("up0", 4_369_029),
        ("bottom0_up1", 4_450_949),
        ("bottom1_up0", 4_532_869),
        ("bottom2_bottom3_mid", 5_024_389),
        ("all-1280-8", 15_030_149),
    ],
)
def test_total_parameter_count_for_every_feature(feature: str, total: int) -> None:
    assert size(on_meta(feature)) == total


def test_keys_of_optional_parts() -> None:
    plain = set(on_meta().state_dict())
    fused = set(on_meta("all-1280-8").state_dict())
    assert fused - plain == {f"fusion_proj.{i}.{part}" for i in range(9) for part in ("weight", "bias")}
    learned = on_meta(position_embedding="learned").state_dict()
    assert set(learned) - plain == {f"position_embedding.{axis}_embed.weight" for axis in ("row", "col")}
    assert learned["position_embedding.row_embed.weight"].shape == (50, 128)
    normed = set(on_meta(pre_norm=True).state_dict())
    assert normed - plain == {"transformer.encoder.norm.weight", "transformer.encoder.norm.bias"}
    unaligned = set(on_meta(contrastive_align_loss=False).state_dict())
    assert {key.split(".")[0] for key in plain - unaligned} == {
        "contrastive_align_projection_image",
        "contrastive_align_projection_text",
    }


def test_initial_weights() -> None:
    torch.manual_seed(0)
    adapter = Adapter(SMALL)
    assert adapter.scale.item() == pytest.approx(1 / 0.07)
    layer = adapter.transformer.encoder.layers[0]
    bound = (6 / (32 + 48)) ** 0.5
    assert 0.95 * bound < layer.linear1.weight.abs().max() <= bound
    assert 0.7 < adapter.query_embed.weight.std() < 1.3


@pytest.mark.parametrize("pre_norm", [False, True])
def test_one_decoder_layer_allows_skipping_the_other_queries(pre_norm: bool) -> None:
    adapter, (features, t) = small(pre_norm=pre_norm), inputs()
    whole, vectors, grounding = adapter(features, t), adapter.match(features, t), adapter.ground(features, t)
    torch.testing.assert_close(vectors, whole.matching, rtol=0, atol=1e-6)
    torch.testing.assert_close(grounding.logits, whole.grounding.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(grounding.boxes, whole.grounding.boxes, rtol=0, atol=1e-6)
    torch.testing.assert_close(grounding.queries, whole.grounding.queries, rtol=0, atol=1e-6)


def decoded_queries(adapter: Adapter) -> int:
    seen: list[int] = []
    decoder = adapter.transformer.decoder
    handle = decoder.register_forward_hook(lambda module, given, output: seen.append(output.shape[1]))
    adapter.match(*inputs())
    handle.remove()
    return seen[0]


def test_queries_are_skipped_only_where_the_output_is_unchanged() -> None:
    assert decoded_queries(small()) == 3
    assert decoded_queries(small().train()) == 8
    deep = small(dec_layers=2)
    assert decoded_queries(deep) == 8
    alone = deep.decode(*inputs(), deep.query_embed.weight[:3])
    assert (deep.matching_head(alone) - deep.match(*inputs())).abs().max() > 1e-3


def test_both_heads_read_the_last_decoder_layer() -> None:
    adapter, (features, t) = small(dec_layers=2), inputs()
    before = adapter(features, t)
    with torch.no_grad():
        adapter.transformer.decoder.layers[1].linear2.bias.add_(torch.randn(32))
    after = adapter(features, t)
    assert (after.matching - before.matching).abs().max() > 1e-3
    assert (after.grounding.logits - before.grounding.logits).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{"enc_layers": 0}, {"enc_layers": 3, "dec_layers": 2, "pre_norm": True}], ids=str)
def test_every_layer_gets_a_gradient(changes: dict[str, Any]) -> None:
    adapter, (features, t) = small(**changes).train(), inputs()
    reading = adapter(features, t)
    assert reading.matching.shape == (2, 3, 12)
    assert reading.grounding.logits.shape == (2, 5, 21)
    assert reading.grounding.queries is not None
    aligned = adapter.align_text(torch.randn(2, 7, 12))
    total = reading.matching.sum() + reading.grounding.logits.sum() + reading.grounding.boxes.sum() + adapter.scale
    (total + (reading.grounding.queries @ aligned.mT).square().sum()).backward()
    assert not [name for name, weight in adapter.named_parameters() if weight.grad is None]


def test_dropout_is_off_in_evaluation() -> None:
    adapter, given = small(), inputs()
    assert torch.equal(adapter.match(*given), adapter.match(*given))
    adapter.train()
    assert not torch.equal(adapter.match(*given), adapter.match(*given))


def test_adapter_without_grounding_queries() -> None:
    adapter = small(num_queries_rec=0)
    reading = adapter(*inputs())
    assert reading.matching.shape == (2, 3, 12)
    assert reading.grounding.boxes.shape == (2, 0, 4)


def test_autocast_does_not_change_the_output() -> None:
    adapter, (features, t) = small(), inputs()
    coarse = features.bfloat16()
    expected = adapter(coarse.float(), t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = adapter(coarse, t)
        alone = adapter.match(coarse, t)
    assert actual.matching.dtype == actual.grounding.logits.dtype == torch.float32
    assert torch.equal(actual.matching, expected.matching)
    assert torch.equal(actual.grounding.boxes, expected.grounding.boxes)
    torch.testing.assert_close(alone, expected.matching, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{"dropout": 0.0}, {"dropout": 0.0, "dec_layers": 2}], ids=["1 layer", "2 layers"])
def test_decode_split_equals_decode_of_its_rows(changes: dict[str, object]) -> None:
    adapter, (features, t) = small(**changes).train(), inputs()
    together = adapter.decode(features, t)
    for_grounding, for_matching = adapter.decode_split(features, t, 1)
    actual, expected = adapter.grounding_head(for_grounding), adapter.grounding_head(together[:1])
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=1e-5)
    vectors, whole = adapter.matching_head(for_matching), adapter.matching_head(together[1:])
    torch.testing.assert_close(vectors, whole, rtol=0, atol=1e-5)
    fewer = for_matching.shape[1] < together.shape[1]
    assert fewer == (adapter.config.dec_layers == 1), "the queries of the other head are left out where they can be"


def test_sequence_placement_adds_embeddings_to_the_values() -> None:
    """The placement `sequence` only adds the embeddings to the projected feature."""
    features, t = inputs()
    keys, sequence = small(), small(code_placement="sequence")
    plain = keys.project
    keys.project = lambda maps: plain(maps) + keys.embeddings(t, *maps.shape[-2:])  # type: ignore[method-assign]
    torch.testing.assert_close(sequence(features, t).matching, keys(features, t).matching)
    keys.project = plain  # type: ignore[method-assign]
    assert not torch.allclose(sequence(features, t).matching, keys(features, t).matching, atol=1e-3)
    with pytest.raises(UserError, match="code_placement is one of keys, sequence, not 'values'"):
        small(code_placement="values")


def test_dropout_decodes_all_queries() -> None:
    adapter, (features, t) = small(dropout=0.1).train(), inputs()
    assert adapter.decode_split(features, t, 1)[1].shape[1] == adapter.config.num_queries


def test_bfloat16_matmuls_are_close_to_float32() -> None:
    adapter, inputs_ = small(), inputs()
    exact = adapter(*inputs_)
    adapter.matmul_dtype = torch.bfloat16
    coarse = adapter(*inputs_)
    assert coarse.matching.dtype == coarse.grounding.logits.dtype == torch.float32
    assert not torch.equal(coarse.matching, exact.matching)
    torch.testing.assert_close(coarse.matching, exact.matching, rtol=0.05, atol=0.05)
    coarse.matching.sum().backward()
    assert {p.grad.dtype for p in adapter.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("training", [False, True])
def test_attention_is_equal_with_and_without_gradients(training: bool) -> None:
    """On a CPU the two use different kernels."""
    adapter, inputs_ = small(dropout=0.0).train(training), inputs()
    with_gradients = adapter(*inputs_).grounding.logits.detach()
    with torch.no_grad():
        torch.testing.assert_close(adapter(*inputs_).grounding.logits, with_gradients, rtol=0, atol=1e-5)


def test_fused_maps_are_a_sum_of_projections() -> None:
    adapter = small(unet_feature="all-10-4", feature_channels=[6, 4, 8], fused_channels=10)
    features, t = inputs(channels=18)
    summed = sum(conv(part) for conv, part in zip(adapter.fusion_proj, features.split([6, 4, 8], dim=1), strict=True))
    expected = adapter.input_proj(summed).flatten(2).transpose(1, 2)
    torch.testing.assert_close(adapter.project(features), expected)
    assert adapter(features, t).matching.shape == (2, 3, 12)


def test_learned_positions_distinguish_rows_and_columns() -> None:
    positions = small(position_embedding="learned").position_embedding
    code = positions(3, 5, torch.device("cpu")).unflatten(0, (3, 5))
    assert torch.equal(code[2, 4], torch.cat([positions.col_embed.weight[4], positions.row_embed.weight[2]]))


def test_learned_positions_cover_the_feature_or_raise() -> None:
    assert on_meta("up2", position_embedding="learned").config.position_rows == 64
    adapter = small(position_embedding="learned", position_rows=4)
    with pytest.raises(UserError, match=r"reach 4 x 4, but the feature is 4 x 5: .* position_rows to 5"):
        adapter(*inputs())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"position_embedding": "cosine"}, "position_embedding is one of sine, learned, not 'cosine'"),
        ({"nheads": 5}, "hidden_dim must be divisible by 4 and by nheads"),
        ({"dec_layers": 0}, "dec_layers must be at least 1"),
        ({"enc_layers": -1}, "enc_layers cannot be negative"),
        ({"dropout": 1.0}, "dropout is at least 0 and below 1"),
    ],
    ids=str,
)
def test_invalid_config_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        small(**changes)


def test_adapter_of_another_model_is_refused() -> None:
    check_fits(AdapterConfig(), model())
    check_fits(AdapterConfig("bottom1_up0", (1920,)), model())
    check_fits(on_meta("all-1280-8").config, model())
    with pytest.raises(UserError, match="it reads up1 with 96 channels, and the model's has 1280"):
        check_fits(AdapterConfig("up1", (96,)), model())
    with pytest.raises(UserError, match="it matches text 1024 wide, and the text encoder writes 768"):
        check_fits(AdapterConfig(), model(768))


def test_config_round_trips_through_json() -> None:
    assert from_plain(AdapterConfig, to_plain(SMALL), "test") == SMALL
