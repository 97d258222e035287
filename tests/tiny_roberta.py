"""A RoBERTa, small enough to build in a test, whose tokens are single characters."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

ROOM = 30


def save(folder: Path, room: int = ROOM, width: int = 16) -> Path:
    entries = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    tokenizer = RobertaTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=[])
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(entries),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=room + 2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
