"""Words, a tokenizer for them, and a text of them, for tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = [f"w{i}" for i in range(60)]
VOCABULARY = 64


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer that puts `<s>` before every text."""
    words: Any = Tokenizer(WordLevel({w: i for i, w in enumerate(["<s>", "<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")
    fast.save_pretrained(folder)


def write_text(file: Path, words: int = 2000) -> Path:
    """Write words that are drawn at random, always the same."""
    file.write_text(" ".join(np.random.default_rng(0).choice(WORDS, words)))
    return file
