"""Forward passes of a diffusion transformer: partial ones, by its own `forward`, and shorter ones for padded texts.

To stop after a block, `BlockWalker` replaces the next module for one call by one that stores its arguments and raises.
To continue, it replaces blocks that have run by ones that return the stored tokens. Results equal those of a full pass.

Without a third text encoder SD3's pipeline appends 256 zero states to every prompt. SD3 gives text no positions, so
these tokens stay equal in every layer: one stands for all of them if its attention scores are raised by the logarithm
of their number. The result differs from the pipeline's by rounding.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dpt.backbone.base import Condition
from dpt.backbone.transformer_families import TransformerFamily


class RepeatedLastToken:
    """An attention processor of SD3's blocks, in which the last text token stands for `count` equal ones.

    A text of more than `count` tokens holds them all, as the stock pipeline gives it, and is attended to as it is.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> tuple[Tensor, Tensor]:
        image, text = hidden_states, encoder_hidden_states
        queries = _by_head(attn, (image, attn.to_q, attn.norm_q), (text, attn.add_q_proj, attn.norm_added_q))
        keys = _by_head(attn, (image, attn.to_k, attn.norm_k), (text, attn.add_k_proj, attn.norm_added_k))
        values = _by_head(attn, (image, attn.to_v, None), (text, attn.add_v_proj, None))
        raised = None
        if text.shape[1] <= self.count:
            raised = keys.new_zeros(1, 1, 1, keys.shape[2])
            raised[..., -1] = math.log(self.count)
        attended = attend(queries, keys, values, raised)
        attended = attended.transpose(1, 2).flatten(2)
        image, text = attended[:, : image.shape[1]], attended[:, image.shape[1] :]
        return attn.to_out[1](attn.to_out[0](image)), text if attn.context_pre_only else attn.to_add_out(text)


def attend(queries: Tensor, keys: Tensor, values: Tensor, raised: Tensor | None) -> Tensor:
    """Attention with `raised` added to the scores; for gradients on a CPU written out, since the fused one is slow."""
    if queries.device.type != "cpu" or not (torch.is_grad_enabled() and queries.requires_grad):
        return scaled_dot_product_attention(queries, keys, values, attn_mask=raised)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if raised is not None:
        scores = scores + raised
    return scores.softmax(dim=-1) @ values


def _by_head(attn: Any, *streams: tuple[Tensor, Any, Any]) -> Tensor:
    """The projections of image and text tokens, normalised and joined, (B,heads,N+L,width)."""
    parts = []
    for tokens, projection, norm in streams:
        heads = projection(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        parts.append(heads if norm is None else norm(heads))
    return torch.cat(parts, dim=2)


def merge_equal_tokens(transformer: Any, count: int) -> None:
    """From now on the transformer takes one token in the place of the `count` equal ones at the end of the text."""
    for block in transformer.transformer_blocks:
        block.attn.set_processor(RepeatedLastToken(count))


@dataclass(frozen=True)
class Tokens:
    """Image and text tokens between two blocks."""

    image: Tensor  # (B,N,D)
    text: Tensor  # (B,L,D); after the last block there may be none, L = 0

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        return Tokens(function(self.image), function(self.text))


@dataclass(frozen=True)
class TokenPartialForward:
    """A forward pass of B rows after its first `done` blocks: the network's inputs, and the tokens there."""

    latents: Tensor  # (B,C,h,w)
    time: Tensor  # (B,), the network's
    condition: Condition
    tokens: Tokens
    done: int

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> TokenPartialForward:
        return replace(
            self,
            latents=self.latents[rows],
            time=self.time[rows],
            condition=self.condition[rows],
            tokens=self.tokens.map(lambda part: part[rows]),
        )

    def concat(self, other: TokenPartialForward) -> TokenPartialForward:
        if self.done != other.done:
            raise ValueError(f"cannot join a forward pass after {self.done} blocks with one after {other.done}")
        return replace(
            self,
            latents=torch.cat([self.latents, other.latents]),
            time=torch.cat([self.time, other.time]),
            condition=Condition.stack([self.condition, other.condition]),
            tokens=Tokens(
                torch.cat([self.tokens.image, other.tokens.image]), torch.cat([self.tokens.text, other.tokens.text])
            ),
        )

    def detached(self) -> TokenPartialForward:
        return replace(self, latents=self.latents.detach(), tokens=self.tokens.map(Tensor.detach))


class BlockWalker:
    """Runs a network's forward pass from one block to another."""

    def __init__(self, network: Any, family: TransformerFamily) -> None:
        self.network, self.family = network, family
        self.places = [(blocks, str(i)) for blocks in family.blocks for i in range(len(getattr(network, blocks.name)))]

    def run(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        output = self.network(**self.family.inputs(self.network.config, latents, time, condition)).sample
        return self.family.output(output, latents)

    def read(
        self, latents: Tensor, time: Tensor, condition: Condition, blocks: Sequence[int]
    ) -> dict[int, TokenPartialForward]:
        """The pass after each of these blocks; it stops after the last of them."""
        kept: dict[int, Tokens] = {}
        last = max(blocks)

        def keep(block: int) -> Callable[[Tokens], None]:
            def function(tokens: Tokens) -> None:
                kept.setdefault(block, tokens)  # gradient checkpointing runs a block again
                if block == last:
                    raise _StoppedError

            return function

        image_tokens = math.prod(latents.shape[-2:]) // self.family.patch(self.network.config) ** 2
        taps = {block + 1: _Tap(self._module(block + 1), self.family, image_tokens, keep(block)) for block in blocks}
        with self._replaced(taps), suppress(_StoppedError):
            self.run(latents, time, condition)
        return {
            block: TokenPartialForward(latents, time, condition, tokens, block + 1) for block, tokens in kept.items()
        }

    def finish(self, partial: TokenPartialForward, detach_after: int | None = None) -> Tensor:
        if detach_after is not None and partial.done == detach_after + 1:
            partial = partial.detached()
        done: dict[int, nn.Module] = {
            place: _Done(partial.tokens, self.places[place][0].is_joint) for place in range(partial.done)
        }
        if detach_after is not None and detach_after >= partial.done:
            place = detach_after + 1
            done[place] = _Detached(self._module(place), self.family, partial.tokens.image.shape[1])
        with self._replaced(done):
            return self.run(partial.latents, partial.time, partial.condition)

    def _module(self, place: int) -> nn.Module:
        """The block at this place; one place further is the module after all blocks."""
        holder, name = self._slot(place)
        module: nn.Module = holder._modules[name]
        return module

    def _slot(self, place: int) -> tuple[Any, str]:
        if place == len(self.places):
            return self.network, self.family.after_blocks
        blocks, name = self.places[place]
        return getattr(self.network, blocks.name), name

    @contextmanager
    def _replaced(self, modules: Mapping[int, nn.Module]) -> Iterator[None]:
        """Replace the modules at these places within the context."""
        slots = {place: self._slot(place) for place in modules}
        own = {place: holder._modules[name] for place, (holder, name) in slots.items()}
        try:
            for place, (holder, name) in slots.items():
                holder._modules[name] = modules[place]
            yield
        finally:
            for place, (holder, name) in slots.items():
                holder._modules[name] = own[place]


class _StoppedError(Exception):
    """Ends a forward pass."""


class _Done(nn.Module):
    """Replaces a block that has run: returns the tokens after it."""

    def __init__(self, tokens: Tokens, is_joint: bool) -> None:
        super().__init__()
        self.output = torch.cat([tokens.text, tokens.image], dim=1) if is_joint else (tokens.text, tokens.image)

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


class _Between(nn.Module):
    """Wraps a module, and reads or changes the tokens that it takes."""

    def __init__(self, module: nn.Module, family: TransformerFamily, image_tokens: int) -> None:
        super().__init__()
        self.call: Callable[..., Any] = module.__call__  # a function, so that the module is not registered here
        self.family, self.image_tokens = family, image_tokens
        self.signature = inspect.signature(module.forward)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        arguments, family = bound.arguments, self.family
        image = family.image_argument if family.image_argument in arguments else next(iter(arguments))
        if family.text_argument in arguments:
            tokens = self.between(Tokens(arguments[image], arguments[family.text_argument]))
            arguments[family.text_argument] = tokens.text
            arguments[image] = tokens.image
        else:  # text tokens, if there are any, come first
            text, tokens_of_image = arguments[image].tensor_split([-self.image_tokens], dim=1)
            tokens = self.between(Tokens(tokens_of_image, text))
            arguments[image] = torch.cat([tokens.text, tokens.image], dim=1)
        return self.call(*bound.args, **bound.kwargs)

    def between(self, tokens: Tokens) -> Tokens:
        raise NotImplementedError


class _Tap(_Between):
    """Passes the tokens to a callback."""

    def __init__(
        self, module: nn.Module, family: TransformerFamily, image_tokens: int, keep: Callable[[Tokens], None]
    ) -> None:
        super().__init__(module, family, image_tokens)
        self.keep = keep

    def between(self, tokens: Tokens) -> Tokens:
        self.keep(tokens)
        return tokens


class _Detached(_Between):
    """Detaches the tokens."""

    def between(self, tokens: Tokens) -> Tokens:
        return tokens.map(Tensor.detach)
