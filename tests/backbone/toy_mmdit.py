"""A second family behind the protocol: a tiny MMDiT with rectified flow, pooled conditioning and token features."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from dpt.backbone.base import Condition, FeatureSpec, Grid
from dpt.backbone.rng import SampleRNG, generator_for

SIDE, PATCH, LAYERS = 8, 2, 3


class RectifiedFlow:
    """z_t = (1 - s) z_0 + s eps with s = t / 1000; the network predicts eps - z_0."""

    prediction_type = "flow"
    num_timesteps = 1000

    def sample_t(self, rng: SampleRNG, purpose: str = "timestep") -> Tensor:
        return rng.integers(1000, purpose) + 1

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return (1 - self._s(t)) * latents + self._s(t) * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - latents

    def x0(self, z_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return z_t - self._s(t) * output

    def eps(self, z_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        return z_t + (1 - self._s(t)) * output

    def snr(self, t: Tensor) -> Tensor:
        s = self._s(t).flatten()
        return ((1 - s) / s) ** 2

    def level(self, t: float) -> float:
        return t / 1000

    def timestep_at(self, level: float) -> int:
        return round(1000 * level)

    def _s(self, t: Tensor) -> Tensor:
        return (t.float() / 1000).reshape(-1, 1, 1, 1)


@dataclass(frozen=True)
class TokenPartialForward:
    hidden: Tensor  # (B,N,D)
    text: Tensor  # (B,L,D)
    embedding: Tensor  # (B,D)
    done: int = 0

    def __getitem__(self, rows: Any) -> TokenPartialForward:
        return replace(self, hidden=self.hidden[rows], text=self.text[rows], embedding=self.embedding[rows])

    def concat(self, other: TokenPartialForward) -> TokenPartialForward:
        joined = {
            name: torch.cat([getattr(self, name), getattr(other, name)]) for name in ("hidden", "text", "embedding")
        }
        return replace(self, **joined)

    def detached(self) -> TokenPartialForward:
        return replace(self, hidden=self.hidden.detach(), text=self.text.detach())


class ToyMMDiT:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.noise: Any = RectifiedFlow()
        self.scheduler_config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
        self.network: Any = SD3Transformer2DModel(
            sample_size=SIDE, patch_size=PATCH, in_channels=4, out_channels=4, num_layers=LAYERS, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10,
            pos_embed_max_size=8,
        ).eval().requires_grad_(False)  # fmt: skip
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.prefers_math_attention = self.guidance_is_embedded = False
        self.text_width, self.match_width, self.latent_channels = 12, 6, 4
        self.default_latent_size: Grid = (SIDE, SIDE)

    def encode_text(self, prompts: Sequence[str]) -> Condition:
        rows = [generator_for(0, zlib.crc32(prompt.encode()), "prompt") for prompt in prompts]
        parts = [[torch.randn(*shape, generator=g) for shape in ((5, 12), (6,), (10,))] for g in rows]
        states, match, pooled = map(torch.stack, zip(*parts, strict=True))
        return Condition(states, match, pooled)

    def predict(self, latents: Tensor, t: Tensor | int, condition: Condition) -> Tensor:
        t = torch.as_tensor(t).expand(len(latents))
        return self.network(latents, condition.states, condition.pooled, t).sample

    def features(
        self, latents: Tensor, t: Tensor | int, condition: Condition, name: str, stop_after: int | None = None
    ) -> tuple[Tensor, TokenPartialForward]:
        net = self.network
        embedding = net.time_text_embed(torch.as_tensor(t).expand(len(latents)), condition.pooled)
        partial = TokenPartialForward(net.pos_embed(latents), net.context_embedder(condition.states), embedding)
        stopped = None
        while partial.done <= self.feature_spec(name).deepest:
            partial = self._block(partial)
            stopped = partial if partial.done - 1 == stop_after else stopped
        side = SIDE // PATCH
        return partial.hidden.transpose(1, 2).unflatten(2, (side, side)), stopped or partial

    def finish(self, partial: Any, detach_after: int | None = None) -> Tensor:
        while partial.done < LAYERS:
            partial = self._block(partial)
        net, side = self.network, SIDE // PATCH
        patches = net.proj_out(net.norm_out(partial.hidden, partial.embedding)).unflatten(1, (side, side))
        pixels = torch.einsum("nhwpqc->nchpwq", patches.unflatten(3, (PATCH, PATCH, 4)))
        return pixels.reshape(len(patches), 4, SIDE, SIDE)

    def _block(self, partial: TokenPartialForward) -> TokenPartialForward:
        text, hidden = self.network.transformer_blocks[partial.done](
            hidden_states=partial.hidden, encoder_hidden_states=partial.text, temb=partial.embedding
        )
        return replace(partial, hidden=hidden, text=partial.text if text is None else text, done=partial.done + 1)

    def blocks(self) -> dict[str, int]:
        return {f"block{i}": i for i in range(LAYERS)}

    def feature_spec(self, name: str) -> FeatureSpec:
        return FeatureSpec(name, (self.blocks()[name],), (16,))

    def feature_grid(self, name: str, latent_size: Grid | None = None) -> Grid:
        height, width = latent_size or self.default_latent_size
        return height // PATCH, width // PATCH

    def block_of(self, module: str) -> str | None:
        return f"block{module.split('.')[1]}" if module.startswith("transformer_blocks.") else None

    def lora_targets(self, blocks: Sequence[str]) -> list[str]:
        names = [name for name, _ in self.network.named_modules()]
        return [n for n in names if n.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")) and "all" in blocks]
