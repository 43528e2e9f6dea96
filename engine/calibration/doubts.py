"""Whether a file of second moments is of another model, as far as names and layers tell: widths may be the same."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..catalogue.names import inner_config
from ..catalogue.sizes import sizes
from ..errors import printable

_SIZE = re.compile(r"(?<![a-z0-9.])\d+(?:x\d+)?(?:\.\d+)?[bm](?![a-z0-9])")
_WORD = re.compile(r"([a-z]{3,})(?:[-_ ]?v?(\d+(?:\.\d+)?)(?![\d.]*[a-z0-9]))?")
_TUNED = frozenset(
    ("instruct", "chat", "coder", "code", "math", "vision", "omni", "audio", "thinking", "reasoning", "distill")
) | {"abliterated", "embedding", "reranker", "guard"}
_NO_NAMES = _TUNED | {"base", "imatrix", "imat", "moments", "gguf", "dat", "safetensors", "calibration", "hf"}


def doubts(named: str, said: Sequence[str], layers: int, model: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Lines on what points to another model than `model`, whose config.json is `config` ({} where it is not known).

    `named` is what the user calls the file, `said` the architecture and name that stand in it, `layers` is the number
    of layers that it is of.
    """
    inner = inner_config(config, "")
    kinds = str(inner.get("model_type") or ""), said[0] if said else ""
    short, long = sorted((re.sub(r"[^a-z0-9]|text", "", kind.lower()) for kind in kinds), key=len)
    if short and not long.startswith(short):
        yield f"it says that it is of {printable(kinds[1], 40)}, and this model is of {printable(kinds[0], 40)}"
    for name in (named, *said[1:]):
        if other := _contradiction(name.lower(), model.lower()):
            yield f"{printable(name, 80)} names {other}, and this model is {printable(model, 80)}"
            break
    if layers > sizes(inner).get("layers", layers):
        yield f"it is of {layers} layers, and this model has {sizes(inner)['layers']}"


def _contradiction(name: str, model: str) -> str:
    """What a file's name says of its model that another model's name contradicts, "" where they agree.

    A name without a number of parameters may be of anything, and tells nothing.
    """
    said, ours = set(_SIZE.findall(name)), set(_SIZE.findall(model))
    if not said or not ours:
        return ""
    if said.isdisjoint(ours):
        return f"a model of {' and '.join(sorted(said)).upper()}"
    if tuned := {word for word in _TUNED if (word in name) != (word in model)}:
        word = min(tuned)
        return f"a model that is {'' if word in name else 'not '}{word}"
    versions, own = _versions(name), _versions(model)
    shared = versions.keys() & own.keys()
    if versions and own and not shared:
        return " ".join(versions)
    return next(
        (f"{word} {' '.join(filter(None, versions[word]))}" for word in shared if versions[word].isdisjoint(own[word])),
        "",
    )


def _versions(name: str) -> dict[str, set[str]]:
    """The words of a name that may be of a family of models, with the numbers behind them, "" for none."""
    found: dict[str, set[str]] = defaultdict(set)
    for word, number in _WORD.findall(name):
        if word not in _NO_NAMES:
            found[word].add(number)
    return found
