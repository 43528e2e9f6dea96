"""The texts of a checkpoint's tokens: from its file if the format stands alone, else from tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..formats.guarded import check_inside, read_json
from ..formats.tokenizer_texts import from_tokenizer

if TYPE_CHECKING:
    from .open import Checkpoint

TOKENIZER = "tokenizer.json"
_MOST_BYTES = 64 << 20
"""The largest known tokenizer.json, with 262,144 tokens and their merges, has 33 MB."""


def token_texts(checkpoint: Checkpoint, folder: Path) -> tuple[Mapping[int, str], str]:
    """The texts of tokens by number, and ""; or none and the reason. `folder` holds the weights."""
    try:
        if checkpoint.format.stands_alone:
            found = checkpoint.format.vocabulary(min(checkpoint.stamps))
            return found, "" if found else "the file has no list of tokens"
        file = folder / TOKENIZER
        if not file.is_file():
            return {}, f"there is no {TOKENIZER} beside the weights"
        check_inside(file)
        found = from_tokenizer(read_json(file, _MOST_BYTES))
        return found, "" if found else f"{TOKENIZER} lists no tokens"
    except InputError as error:
        return {}, str(error)
