"""CLIP and detectors with random weights, small enough to build in a test, saved as the real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    DFineConfig,
    DFineForObjectDetection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    HGNetV2Config,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    SwinConfig,
)

from tests import tiny_models

NOUNS = ("car", "carrot", "dog", "cat", "cross")
WORDS = [*tiny_models.WORDS, "image", "photo", *NOUNS]
NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**NARROW, "image_size": 32, "patch_size": 8}
SQUARE = {"height": 32, "width": 32}


def _clip_text(length: int) -> tuple[Any, dict[str, Any]]:
    tokens = tiny_models.tokenizer(length, words=WORDS)
    ids = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    text = {**NARROW, **ids, "pad_token_id": tokens.pad_token_id, "vocab_size": len(tokens)}
    return tokens, {**text, "max_position_embeddings": length}


def _save(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def clip(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokens, text = _clip_text(24)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    return _save(folder, model, processor, tokens)


def owl(folder: Path, version: int = 2, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokens, text = _clip_text(16)
    config, kind, processor = (
        (Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil(size=SQUARE))
        if version == 2
        else (OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessorPil(size=SQUARE))
    )
    return _save(folder, kind(config(text_config=text, vision_config=VISION, projection_dim=16)), processor, tokens)


def grounding_dino(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    # The model's code separates phrases by these token ids of the published vocabulary.
    fixed = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    words = dict(enumerate(["car", "##rot", "dog", "cat", "red", "blue", "circle", "square"], start=200))
    entries = {**{number: f"[unused{number}]" for number in range(1040)}, **fixed, **words}
    tokens = BertTokenizer(vocab={entry: number for number, entry in entries.items()})
    half = {"encoder": 1, "decoder": 2}
    shape = {f"{name}_layers": layers for name, layers in half.items()}
    shape |= {f"{name}_ffn_dim": 32 for name in half} | {f"{name}_attention_heads": 2 for name in half}
    shape |= {f"{name}_n_points": 2 for name in half}
    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=SwinConfig(
                image_size=32, patch_size=2, embed_dim=8, depths=[1] * 3, num_heads=[1] * 3, window_size=2,
                out_indices=[1, 2, 3],
            ),
            text_config=BertConfig(**NARROW, vocab_size=len(entries), max_position_embeddings=64),
            d_model=32, num_queries=10, num_feature_levels=4, max_text_len=64, **shape,
        )
    )  # fmt: skip
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 64})
    return _save(folder, model, processor, tokens)


def coco_detector(folder: Path, model_type: str, seed: int = 0, labels: dict[int, str] | None = None) -> Path:
    """A DETR, RT-DETR or D-FINE with the labels of older files for couch and tv, and a number without a class."""
    torch.manual_seed(seed)
    names = labels or {0: "car", 1: "carrot", 2: "N/A", 3: "sofa", 4: "hot dog", 5: "dog", 6: "tvmonitor"}
    common = {"id2label": names, "d_model": 32, "num_queries": 10, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    common |= {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    if model_type == "detr":
        backbone: Any = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4, layer_type="basic", out_features=["stage4"]
        )
        config = DetrConfig(use_timm_backbone=False, backbone_config=backbone, backbone=None, **common)
        size = {"shortest_edge": 32, "longest_edge": 64}
        return _save(folder, DetrForObjectDetection(config), DetrImageProcessorPil(size=size))
    shape = {"encoder_in_channels": [8, 8, 16], "decoder_in_channels": [32] * 3, "encoder_hidden_dim": 32,
             "feat_strides": [8, 16, 32], "decoder_n_points": 2, "num_denoising": 0}  # fmt: skip
    if model_type == "d_fine":
        backbone = HGNetV2Config(
            stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 8, 8], stage_mid_channels=[8] * 4,
            stage_out_channels=[8, 8, 8, 16], stage_num_blocks=[1] * 4, stage_numb_of_layers=[1] * 4,
            hidden_sizes=[8, 8, 8, 16], depths=[1] * 4, embedding_size=8, out_features=["stage2", "stage3", "stage4"],
        )  # fmt: skip
        model: Any = DFineForObjectDetection(DFineConfig(backbone_config=backbone, max_num_bins=8, **shape, **common))
    else:
        backbone = RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4, layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )  # fmt: skip
        model = RTDetrForObjectDetection(RTDetrConfig(backbone_config=backbone, **shape, **common))
    return _save(folder, model, RTDetrImageProcessorPil(size={"height": 64, "width": 64}))
