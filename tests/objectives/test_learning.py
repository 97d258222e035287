"""Features, adapter and all losses together overfit a handful of examples."""

from __future__ import annotations

from pathlib import Path

import torch

from dpt.adapter import Adapter, config_for
from dpt.adapter.model import BackbonePhraseEncoder, token_map
from dpt.backbone import open_backbone
from dpt.objectives.losses import (
    Targets,
    assign,
    box_loss,
    contrastive_align_loss,
    cxcywh_to_xyxy,
    giou_loss,
    image_to_text_loss,
    iou,
    match_score,
    text_to_image_loss,
    token_loss,
)
from tests import tiny_models

CAPTIONS = ["a red circle", "a blue square", "two green stars"]


def test_model_overfits_a_few_pairs(tmp_path: Path) -> None:
    """Three images and three captions in all nine combinations, in one batch."""
    backbone = open_backbone(tiny_models.save(tiny_models.POCKET, tmp_path / "model"), device="cpu")
    text = backbone.encode_text(CAPTIONS)
    torch.manual_seed(0)
    pictures, t = torch.randn(3, 4, 16, 16), torch.full((9,), 100)
    image, caption = torch.arange(9) // 3, torch.arange(9) % 3
    features, _ = backbone.features(pictures[image], t, text[caption], "up0")
    assert not features.requires_grad

    phrases = BackbonePhraseEncoder(backbone).encode(CAPTIONS, text)
    token_maps = [
        token_map(spelled, [[(2, len(caption))]]) for spelled, caption in zip(phrases.offsets, CAPTIONS, strict=True)
    ]
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.4], [0.5, 0.5, 0.8, 0.6]])
    targets = Targets.pad(list(boxes[:, None]), token_maps)

    small = {"hidden_dim": 32, "nheads": 4, "dim_feedforward": 64, "num_queries_rec": 6, "dropout": 0.0}
    width = backbone.text_width
    adapter = Adapter(config_for(backbone, "up0", width, text_encoder_type="backbone", **small))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-3)
    diagonal = torch.arange(3) * 4
    true_first = torch.stack([torch.arange(3).roll(-i) for i in range(3)])  # row i begins with i
    for _ in range(80):
        reading = adapter(features, t)
        vectors = reading.matching.unflatten(0, (3, 3))  # (image,caption,M,D)
        rows = torch.arange(3)[:, None]
        i2t = image_to_text_loss(vectors[rows, true_first], text.match[true_first], adapter.scale)
        t2i = text_to_image_loss(vectors[true_first, rows], text.match, adapter.scale)
        actual = reading.grounding
        logits, predicted = actual.logits[diagonal], actual.boxes[diagonal]
        assert actual.queries is not None
        assignment = assign(logits, predicted, targets)
        align = contrastive_align_loss(
            actual.queries[diagonal],
            adapter.align_text(phrases.states),
            targets,
            assignment,
            3,
            token_mask=phrases.mask,
        )
        grounding = token_loss(logits, targets, assignment, 3) + 5 * box_loss(predicted, targets, assignment, 3)
        loss = i2t + t2i + grounding + 2 * giou_loss(predicted, targets, assignment, 3) + align
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    adapter.eval()
    with torch.no_grad():
        scores = match_score(adapter.match(features, t), text.match[caption]).unflatten(0, (3, 3))
        actual = adapter.ground(features[diagonal], t[:3])
    assert torch.equal(scores.argmax(dim=0), torch.arange(3))
    assert torch.equal(scores.argmax(dim=1), torch.arange(3))
    surest = actual.logits.softmax(dim=-1)[..., -1].argmin(dim=1)
    best = actual.boxes[torch.arange(3), surest]
    assert (iou(cxcywh_to_xyxy(best), cxcywh_to_xyxy(boxes)) > 0.5).all()
