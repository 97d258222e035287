"""Randomness as a function of (seed, index, purpose), never of what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, index: int, purpose: str) -> int:
    """A 63-bit seed; two that differ in any argument are unrelated."""
    digest = hashlib.sha256(f"{seed}/{index}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, index: int, purpose: str) -> torch.Generator:
    """A generator on the CPU, whose numbers are the same whatever device they are used on."""
    return torch.Generator().manual_seed(derived_seed(seed, index, purpose))
