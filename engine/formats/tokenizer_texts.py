"""The texts of tokens: from the form in which tokenizers store them to the form that a person reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

_SPACE = "\u2581"
"""The character that SentencePiece writes for a space."""


def readable(texts: Iterable[tuple[int, str]], *, by_bytes: bool) -> dict[int, str]:
    """Texts of tokens by number; `by_bytes`: each character stands for a byte, as in GPT-2's tokenizer."""
    return {number: _from_bytes(text) if by_bytes else text.replace(_SPACE, " ") for number, text in texts}


def from_tokenizer(found: Mapping[str, Any]) -> dict[int, str]:
    """The texts of tokens by number, from the content of tokenizer.json; {} if it lists none."""
    model = found.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    parts = json.dumps([found.get(part) for part in ("decoder", "pre_tokenizer")])
    texts = readable(_listed(vocab), by_bytes='"ByteLevel"' in parts)
    added = found.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        number, text = (token.get("id"), token.get("content")) if isinstance(token, Mapping) else (None, None)
        if type(number) is int and isinstance(text, str):
            texts[number] = text
    return texts


def _listed(vocab: Any) -> Iterator[tuple[int, str]]:
    """Yield number and text, from a mapping of texts to numbers or from a list of texts with scores."""
    if isinstance(vocab, Mapping):
        yield from ((number, text) for text, number in vocab.items() if type(number) is int)
    elif isinstance(vocab, list):
        for number, entry in enumerate(vocab):
            if isinstance(entry, list) and entry and isinstance(entry[0], str):
                yield number, entry[0]


def _from_bytes(text: str) -> str:
    """The text of the bytes that the characters stand for. Bytes that form no whole character are shown as \\xe4."""
    known = _bytes()
    if not all(letter in known for letter in text):  # added tokens are stored as plain text
        return text
    return bytes(known[letter] for letter in text).decode("utf-8", "backslashreplace")


@cache
def _bytes() -> Mapping[str, int]:
    """The byte that each character stands for: printable bytes are themselves, the others follow from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
