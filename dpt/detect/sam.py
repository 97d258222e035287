"""SAM and SAM 2 from transformers: a mask for each box, the best of three by the model's own estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dpt.backbone.device import resolve_device
from dpt.backbone.hf_model import open_hf_model
from dpt.claims.boxes import Box
from dpt.detect.base import Image
from dpt.detect.masks import Mask, box_mask, dilated
from dpt.errors import UserError

SAM_TYPES = ("sam", "sam2")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BOX_MARGIN = 0.1
"""How far a mask may reach past its box, as a share of the box's sides."""


@dataclass(frozen=True)
class SamSegmenter:
    model: Any
    identity: str
    stretched: bool
    """Whether the image is stretched to the model's square (SAM 2) or padded to it (SAM)."""

    @property
    def side(self) -> int:
        return int(self.model.config.prompt_encoder_config.image_size)

    @torch.no_grad()
    def masks(self, image: Image, boxes: Sequence[Box]) -> list[Mask]:
        """The image is encoded once for all boxes."""
        if not boxes:
            return []
        height, width = image.shape[:2]
        rows, columns = self._scaled_size(height, width)
        pixels = self._pixels(image, rows, columns).to(self.model.device)
        scale = torch.tensor([columns / width, rows / height] * 2)
        corners = torch.tensor([[box.x0, box.y0, box.x1, box.y1] for box in boxes]) * scale
        out = self.model(pixel_values=pixels, input_boxes=corners[None].to(pixels), multimask_output=True)
        scores, logits = out.iou_scores[0].float().cpu(), out.pred_masks[0].float().cpu()
        if not (torch.isfinite(scores).all() and torch.isfinite(logits).all()):
            raise UserError(f"{self.identity} returned NaN or infinite masks")
        best = logits[torch.arange(len(boxes)), scores.argmax(-1)]
        full = F.interpolate(best[:, None], (self.side, self.side), mode="bilinear", align_corners=False)
        own = F.interpolate(full[:, :, :rows, :columns], (height, width), mode="bilinear", align_corners=False)
        return [_within(np.asarray(mask[0] > 0), box) for mask, box in zip(own, boxes, strict=True)]

    def _scaled_size(self, height: int, width: int) -> tuple[int, int]:
        if self.stretched:
            return self.side, self.side
        scale = self.side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _pixels(self, image: Image, rows: int, columns: int) -> Tensor:
        values = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None] / 255
        values = F.interpolate(values, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
        values = (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        return F.pad(values, (0, self.side - columns, 0, self.side - rows))


def _within(mask: Mask, box: Box) -> Mask:
    """The mask near its box; the box itself if nothing is left."""
    height, width = mask.shape
    whole = box_mask(box, height, width)
    near = dilated(whole, round(BOX_MARGIN * max(box.width, box.height)))
    return mask & near if (mask & near).any() else whole


def open_sam(name: str, device: str | None = None) -> SamSegmenter:
    """`name`: a folder or hub id of a SAM or SAM 2 model."""
    from transformers import Sam2Model, SamModel

    folder = open_hf_model(name, SAM_TYPES, "segmentation model")
    version_2 = folder.model_type == "sam2"
    model = folder.load(Sam2Model if version_2 else SamModel).eval().to(resolve_device(device))
    return SamSegmenter(model, folder.identity, stretched=version_2)
