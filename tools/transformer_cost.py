"""Cost of a corrected step on transformers of true size, counted on the meta device: nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dpt.adapter import Adapter
from dpt.adapter.transformer import AdapterConfig
from dpt.backbone.base import Condition
from dpt.backbone.loading import library_class
from dpt.backbone.memory import saved_activation_bytes
from dpt.backbone.mmdit import normalise_tokens
from dpt.backbone.token_forward import BlockWalker
from dpt.backbone.transformer_families import FLUX, SD3, TransformerFamily

LATENT_CHANNELS, SIDE = 16, 128
"""1024 x 1024 pixels."""


@dataclass(frozen=True)
class Model:
    name: str
    family: TransformerFamily
    config: dict[str, Any]
    text_tokens: int
    pooled_width: int
    guided_forwards: int
    """Forward passes of a plain step at the usual guidance."""
    blocks: tuple[int, ...]


SD3_MEDIUM = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
SD35_MEDIUM = {
    **SD3_MEDIUM, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
FLUX_DEV = {
    "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
MODELS = (
    Model("SD3-medium", SD3, SD3_MEDIUM, 77 + 256, 2048, 2, (4, 8, 12, 16)),
    Model("SD3.5-medium", SD3, SD35_MEDIUM, 77 + 256, 2048, 2, (4, 8, 12, 16)),
    Model("FLUX.1-dev", FLUX, FLUX_DEV, 512, 768, 1, (6, 12, 18, 28)),
)


def main() -> None:
    print(
        "| model | weights, bf16 | forward | feature | partial forward | its gradient | corrected step | activations |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for model in MODELS:
        with torch.device("meta"):
            kind = library_class("diffusers", model.family.transformer.classes[0])
            network = kind(**model.config).to(torch.bfloat16).requires_grad_(False)
            for line in rows(model, network):
                print(line)


def rows(model: Model, network: Any) -> list[str]:
    weights = sum(p.numel() for p in network.parameters()) * 2 / 2**30
    width, walker = model.family.width(network.config), BlockWalker(network, model.family)
    time, z = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, LATENT_CHANNELS, SIDE, SIDE, dtype=torch.bfloat16)
    states = torch.zeros(1, model.text_tokens, 4096, dtype=torch.bfloat16)
    condition = Condition(states, states[:, 0], torch.zeros(1, model.pooled_width, dtype=torch.bfloat16))
    whole = flops(lambda: walker.run(z, time, condition))
    adapter = Adapter(AdapterConfig("block0", (width,), text_width=model.pooled_width, feature_norm=True)).eval()
    adapter.requires_grad_(False)
    lines = []
    for block in model.blocks:
        partial = flops(lambda block=block: walker.read(z, time, condition, [block]))

        def gradient(block: int = block) -> None:
            leaf = z.clone().requires_grad_()
            tokens = walker.read(leaf * 1, time, condition, [block])[block].tokens.image
            feature = normalise_tokens(tokens).transpose(1, 2).unflatten(2, (SIDE // 2, SIDE // 2))
            adapter.match(feature, torch.zeros(1)).sum().backward()

        extra = flops(gradient) - partial  # the fused target goes on from the partial forward that guidance needs
        plain = model.guided_forwards * whole

        def forward(copy: Any, block: int = block) -> object:
            return BlockWalker(copy, model.family).read(
                z.float(), time.float(), condition.map(torch.Tensor.float), [block]
            )

        kinds = {type(m).__name__ for blocks in model.family.blocks for m in getattr(network, blocks.name)}
        saved = [
            saved_activation_bytes(network, forward, checkpointing, kinds) / 2**30 for checkpointing in (False, True)
        ]
        lines.append(
            f"| {model.name} | {weights:.1f} GiB | {whole / 1e12:.1f} TFLOP | block{block} | {partial / whole:.0%} "
            f"| {extra / whole:.0%} | {1 + extra / plain:.2f} | {saved[0]:.1f} GiB, {saved[1]:.1f} with checkpointing |"
        )
    return lines


def flops(function: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
