"""The text of a calibration, from a file or Python's own help pages, and the sequences of tokens made from it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_128

from ..errors import InputError, cannot_read, printable
from ..formats.guarded import no_such

BUILTIN = "builtin"
LENGTH = 512
"""How many tokens a sequence has, as in llama-imatrix. Position 0 is one token of each."""


class Text(NamedTuple):
    """A text, and its label for users: where it is from, with the digest of its bytes."""

    text: str
    label: str


def read_text(named: str) -> Text:
    """Read a file in UTF-8 or, for the name `builtin`, the topics of Python's help in the order of their names.

    Raises:
        InputError: there is no such file, or it holds no text.
    """
    if named == BUILTIN:
        from pydoc_data.topics import topics

        text, label = "\n\n".join(topics[name] for name in sorted(topics)), f"pydoc topics {platform.python_version()}"
    else:
        try:
            text = Path(named).expanduser().read_text("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{printable(named)} is not UTF-8 text: name a text file, or save it as UTF-8") from None
        except (FileNotFoundError, ValueError, RuntimeError):  # also a null character, ~nobody
            raise no_such("text file", named, f"name one that is here, or {BUILTIN}") from None
        except OSError as error:
            raise cannot_read(named, error) from None
        label = Path(named).name
    if not text.strip():
        raise InputError(f"{printable(named)} holds no text: name a file with some, or {BUILTIN}")
    return Text(text, f"{label} xxh3:{xxh3_128(text.encode()).hexdigest()}")


def sequences(text: str, tokenizer: Any, length: int, tokens: float) -> Iterator[list[int]]:
    """Yield the first `tokens` tokens in sequences of `length`, each with the special tokens that a tokenizer of
    transformers puts around a text.

    A last sequence that is too short is left out, unless it is the only one.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    before, behind = whole[:at], whole[at + len(plain) :]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    step = max(length - len(before) - len(behind), 1)
    for number, start in enumerate(range(0, len(ids), step)):
        if number * length >= tokens or (start and start + step > len(ids)):
            return
        yield [*before, *ids[start : start + step], *behind]
