"""In which order a source is gone through: a pure function of (seed, position), nothing stored."""

from __future__ import annotations

from dpt.backbone.randomness import derived_seed

ROUNDS = 6
MIX = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1


def epoch_of(position: int, length: int) -> int:
    return position // length


def shuffled_index(seed: int, position: int, length: int) -> int:
    """Which item comes at this position: every epoch is a permutation of its own of 0 … length - 1.

    A Feistel network permutes the smallest square power of two that holds the length; what falls outside is
    permuted again until it falls inside.
    """
    if length < 1 or position < 0:
        raise ValueError(f"there is no position {position} in a source of {length} examples")
    key = derived_seed(seed, epoch_of(position, length), "order")
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    index = position % length
    while True:
        index = _permute(index, key, half_bits)
        if index < length:
            return index


def _permute(value: int, key: int, half_bits: int) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for nth in range(ROUNDS):
        left, right = right, left ^ (_mixed(right, key, nth) & mask)
    return left << half_bits | right


def _mixed(value: int, key: int, nth: int) -> int:
    """The finaliser of splitmix64."""
    value = (value + key + (nth + 1) * MIX) & WORD
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & WORD
    return value ^ value >> 31
