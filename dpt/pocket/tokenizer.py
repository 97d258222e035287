"""A stock CLIPTokenizer whose byte-pair merges make one token of each word of the scene grammar."""

from __future__ import annotations

import itertools
from collections import Counter

from transformers import CLIPTokenizer

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"


def learn_merges(words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Byte-pair encoding carried on until every word is one symbol; returns all symbols and the merges in order."""
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    symbols = sorted({symbol for word in spelled for symbol in word})
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelled for pair in itertools.pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        symbols.append("".join(best))
        spelled = [_merge(word, best) for word in spelled]
    return symbols, merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def build_tokenizer(words: list[str], length: int) -> CLIPTokenizer:
    symbols, merges = learn_merges(words)
    vocabulary = {symbol: i for i, symbol in enumerate([START, END, UNKNOWN, *dict.fromkeys(symbols)])}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=length,
    )
