"""Diffusion transformers with rectified flow. What differs between families is in `transformer_families`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import loading, memory
from dpt.backbone.base import Condition, FeatureSpec, Grid, NoiseSchedule
from dpt.backbone.diffusers_model import DiffusersModel, add_passes
from dpt.backbone.folder import FLOW_SCHEDULER, VAE, ModelFolder
from dpt.backbone.noise import STEP_RULE, RectifiedFlow, StepRule, is_flow
from dpt.backbone.quantization import Quantization
from dpt.backbone.text import PromptEncoder, TextInputs, is_zero_t5, prompt_warnings, tokenize
from dpt.backbone.token_forward import BlockWalker, TokenPartialForward, merge_equal_tokens
from dpt.backbone.transformer_families import TransformerFamily
from dpt.errors import UserError
from dpt.generation_defaults import GenerationDefaults, generation_defaults

MEDIANS = 3.0
"""Where `normalise_tokens` clips, in medians."""


def normalise_tokens(tokens: Tensor) -> Tensor:
    """Tokens (B,N,D) on the scale of their median channel, softly clipped at three medians; float32.

    In large transformers a few channels are hundreds of times larger than the others (massive activations). A
    RMS normalisation, as in the blocks themselves, would leave little else; the median is robust to them.
    """
    tokens = tokens.float()
    median = tokens.detach().abs().median(dim=-1, keepdim=True).values
    scaled = tokens / median.clamp_min(torch.finfo(tokens.dtype).tiny)
    return scaled * (1 + (scaled / MEDIANS).square()).rsqrt()


class TransformerBackbone(DiffusersModel):
    """A `Backbone`: text encoders, VAE, transformer and noise schedule of one family, all frozen."""

    def __init__(
        self,
        family: TransformerFamily,
        *,
        encoders: dict[str, PromptEncoder],
        vae: Any,
        transformer: Any,
        scheduler_config: dict[str, Any],
        folder: ModelFolder,
        generation_defaults: GenerationDefaults | None = None,
    ) -> None:
        if not is_flow(scheduler_config):
            name = scheduler_config.get("_class_name")
            raise UserError(
                f"the scheduler of {folder.path} is a {name}, and its transformer needs a flow matching one"
            )
        self.family, self.encoders = family, encoders
        self.vae, self.transformer = vae, transformer
        self.walker = BlockWalker(transformer, family)
        height, width = self.default_latent_size
        self.noise: NoiseSchedule = RectifiedFlow(scheduler_config, height * width // self.latent_multiple**2)
        is_dynamic = bool(scheduler_config.get("use_dynamic_shifting"))
        steps = StepRule(self.latent_multiple, self.default_latent_size, family.gives_sigmas, is_dynamic)
        self.scheduler_config = {**scheduler_config, "prediction_type": self.noise.prediction_type, STEP_RULE: steps}
        self.folder = folder
        self.generation_defaults = generation_defaults or GenerationDefaults()
        t5_is_zero = family.optional_t5 is not None and is_zero_t5(encoders, family.optional_t5)
        if t5_is_zero:
            merge_equal_tokens(transformer, family.text_tokens)
        self.text = TextInputs(encoders, self.text_width, family.text_tokens, t5_is_zero)

    @classmethod
    def load(
        cls,
        family: TransformerFamily,
        folder: ModelFolder,
        device: torch.device,
        dtype: torch.dtype,
        quantize: Quantization | None = None,
    ) -> TransformerBackbone:
        _check_parts_fit(family, folder)
        parts = [part for part in family.texts if part in folder.components]
        tokenizers = {part.name: loading.load_tokenizer(folder, part) for part in parts if part.is_tokenizer}
        encoders = {
            part.name: PromptEncoder(
                tokenizers[part.name.replace("text_encoder", "tokenizer")],
                loading.load_text_encoder(folder, dtype, part).to(device),
            )
            for part in parts
            if not part.is_tokenizer
        }
        return cls(
            family,
            encoders=encoders,
            vae=loading.load_vae(folder, torch.float32).to(device),
            transformer=loading.load_network(folder, dtype, family.transformer, quantize).to(device),
            scheduler_config=loading.scheduler_config(folder, FLOW_SCHEDULER),
            folder=folder,
            generation_defaults=generation_defaults(folder.path),
        )

    # Text

    def encode_text(self, prompts: Sequence[str]) -> Condition:
        return self.family.encode(self.text, prompts)

    def tokenize(self, texts: Sequence[str]) -> Any:
        return tokenize(self._phrases.tokenizer, texts, self.prompt_length)

    def prompt_warnings(self, prompt: str) -> list[str]:
        return prompt_warnings(self._phrases.tokenizer, prompt, self.prompt_length)

    @property
    def prompt_length(self) -> int:
        return min(self._phrases.length, self.family.text_tokens)

    @property
    def text_width(self) -> int:
        return self.family.text_width(self.transformer.config)

    @property
    def match_width(self) -> int:
        configs = {name: encoder.model.config.to_dict() for name, encoder in self.encoders.items()}
        return self.family.match_width(configs)

    @property
    def _phrases(self) -> PromptEncoder:
        return self.encoders[self.family.phrase_tokenizer]

    # Images

    @property
    def default_latent_size(self) -> Grid:
        side = self.family.default_side(self.transformer.config)
        return side, side

    @property
    def latent_multiple(self) -> int:
        return self.family.patch(self.transformer.config)

    def _latent_side(self, name: str, pixels: int) -> int:
        side = super()._latent_side(name, pixels)
        largest = self.family.largest_side(self.transformer.config)
        if largest is not None and side > largest:
            raise UserError(f"the {name} can be at most {largest * self.vae_scale_factor}, not {pixels}")
        return side

    # Denoising

    @property
    def guidance_is_embedded(self) -> bool:
        return self.family.guidance_is_embedded

    def predict(self, latents: Tensor, t: Tensor | int, condition: Condition) -> Tensor:
        add_passes(latents)
        return self.walker.run(*self._inputs(latents, t, condition)).to(latents.dtype)

    def features(
        self, latents: Tensor, t: Tensor | int, condition: Condition, name: str, stop_after: int | None = None
    ) -> tuple[Tensor, TokenPartialForward]:
        spec = self.feature_spec(name)
        needed = [*spec.blocks, *([] if stop_after is None else [stop_after])]
        add_passes(latents, (max(needed) + 1) / len(self.blocks()))
        passes = self.walker.read(*self._inputs(latents, t, condition), needed)
        grid = self.feature_grid(name, (latents.shape[-2], latents.shape[-1]))
        maps = [
            normalise_tokens(passes[block].tokens.image).transpose(1, 2).unflatten(2, grid) for block in spec.blocks
        ]
        feature = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
        return feature.to(latents.dtype), passes[spec.deepest if stop_after is None else stop_after]

    def finish(self, partial: Any, detach_after: int | None = None) -> Tensor:
        add_passes(partial.tokens.image, 1 - partial.done / len(self.blocks()))
        return self.walker.finish(partial, detach_after).float()

    def _inputs(self, latents: Tensor, t: Tensor | int, condition: Condition) -> tuple[Tensor, Tensor, Condition]:
        device, dtype = self.device, self.dtype  # each looks through the network's modules
        time = torch.as_tensor(t, device=device).float().expand(len(latents))
        time = self.family.network_time(time, self.noise.num_timesteps)
        return latents.to(device, dtype), time, condition.map(lambda part: part.to(device, dtype))

    # The network

    @property
    def network(self) -> Any:
        return self.transformer

    def blocks(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.family.block_names(self.transformer.config))}

    @property
    def default_feature(self) -> str:
        """A third of the way through the blocks."""
        return f"block{len(self.blocks()) // 3}"

    def feature_spec(self, name: str) -> FeatureSpec:
        blocks, parts = self.blocks(), name.split("_")
        if not set(parts) <= set(blocks):
            raise UserError(
                f"there is no feature {name!r} (--unet_feature); this transformer has block0 to {list(blocks)[-1]}, "
                "and several joined by _"
            )
        if len(set(parts)) < len(parts):
            raise UserError(f"the feature {name!r} names the same block twice")
        width = self.family.width(self.transformer.config)
        return FeatureSpec(name, tuple(blocks[part] for part in parts), (width,) * len(parts), is_tokens=True)

    def feature_grid(self, name: str, latent_size: Grid | None = None) -> Grid:
        self.feature_spec(name)
        height, width = latent_size or self.default_latent_size
        return height // self.latent_multiple, width // self.latent_multiple

    def block_of(self, module: str) -> str | None:
        for position, (blocks, number) in enumerate(self.walker.places):
            prefix = f"{blocks.name}.{number}."
            if module.startswith(prefix) and module.removeprefix(prefix) in self.family.projections:
                return list(self.blocks())[position]
        return None

    def lora_targets(self, blocks: Sequence[str]) -> list[str]:
        known = self.blocks()
        if unknown := [name for name in blocks if name != "all" and name not in known]:
            raise UserError(
                f"there is no block {unknown[0]!r} for a LoRA; this transformer has all, and block0 to "
                f"{list(known)[-1]}"
            )
        names = [name for name, _ in self.transformer.named_modules()]
        return [name for name in names if (block := self.block_of(name)) and (block in blocks or "all" in blocks)]

    def prepare_for_gradients(self) -> None:
        """Nothing to swap: the blocks of these networks have no convolutions."""

    # Facts

    @property
    def architecture(self) -> str:
        return self.family.name

    def modules(self) -> list[Any]:
        return [*(encoder.model for encoder in self.encoders.values()), self.vae, self.transformer]

    def inference_bytes(self) -> int:
        height, width = self.default_latent_size
        tokens = height * width // self.latent_multiple**2 + self.family.text_tokens
        return memory.MAPS_AT_ONCE * tokens * self.family.width(self.transformer.config) * self.dtype.itemsize

    def activation_bytes(self, feature: str | None, gradient_checkpointing: bool) -> int:
        z = torch.zeros(1, self.latent_channels, *self.default_latent_size, device="meta")
        time = torch.zeros(1, device="meta")
        with torch.no_grad():
            condition = self.encode_text([""]).map(lambda part: part.to("meta"))
        blocks = None if feature is None else self.feature_spec(feature).blocks

        def forward(network: Any) -> object:
            walker = BlockWalker(network, self.family)
            return walker.run(z, time, condition) if blocks is None else walker.read(z, time, condition, blocks)

        lists = [getattr(self.transformer, blocks.name) for blocks in self.family.blocks]
        kinds = {type(block).__name__ for blocks in lists for block in blocks}
        return memory.saved_activation_bytes(self.transformer, forward, gradient_checkpointing, kinds)


def _check_parts_fit(family: TransformerFamily, folder: ModelFolder) -> None:
    """Refuse valid components whose widths do not match."""
    network, vae = folder.config(family.transformer), folder.config(VAE)
    texts = {part.name: folder.config(part) for part in family.texts if part in folder.components}
    for what, reads, writes in family.seams(network, vae, texts):
        if reads != writes:
            raise UserError(
                f"the parts of {folder.path} do not fit: the transformer reads {what} {reads} wide, not {writes}"
            )
