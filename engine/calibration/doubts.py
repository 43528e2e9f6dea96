"""Signs that a file of second moments belongs to another model: names and numbers of layers, as widths may agree."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ..catalogue.names import inner_config
from ..catalogue.sizes import sizes
from ..errors import printable

_SIZE = re.compile(r"(?<![a-z0-9.])\d+(?:x\d+)?(?:\.\d+)?[bm](?![a-z0-9])")
_WORD = re.compile(r"([a-z]{3,})(?:[-_ ]?v?(\d+(?:\.\d+)?)(?![\d.]*[a-z0-9]))?")
_TUNED = frozenset(
    ("instruct", "it", "chat", "coder", "code", "math", "vision", "omni", "audio", "thinking", "reasoning", "distill")
) | {"abliterated", "embedding", "reranker", "guard"}
_NO_NAMES = _TUNED | {"base", "imatrix", "imat", "moments", "gguf", "dat", "safetensors", "calibration", "hf"}


def doubts(
    file: str, architecture: str, name: str, layers: int, model: str, config: Mapping[str, Any]
) -> Iterator[str]:
    """Yield lines on what suggests that a file belongs to another model than `model`.

    `config` is the model's config.json, {} if not known. `file` is the file's name as the user gives it; `architecture`
    and `name` are those of a model in the file, "" if missing; `layers` is how many layers it has moments for.
    """
    inner = inner_config(config, "")
    kind = str(inner.get("model_type") or "")
    # Only GGUF uses the same words: by config.json a Mistral is a "mistral", in GGUF its architecture is "llama".
    if "architectures" not in config and kind and architecture not in ("", kind, "imatrix"):
        yield f"it was made of {printable(architecture, 40)}, and this model is {printable(kind, 40)}"
    for said in (file, name):
        if other := _contradiction(said.lower(), model.lower()):
            yield f"{printable(said, 80)} names {other}, and this model is {printable(model, 80)}"
            break
    if layers > sizes(inner).get("layers", layers):
        yield f"it has {layers} layers, and this model has {sizes(inner)['layers']}"


def _contradiction(name: str, model: str) -> str:
    """The words in a name that contradict a model's name, "" if they agree.

    A name without a number of parameters may belong to any model: it contradicts nothing.
    """
    said, own = set(_SIZE.findall(name)), set(_SIZE.findall(model))
    if not said or not own:
        return ""
    if said.isdisjoint(own):
        return f"a model of {' and '.join(sorted(said)).upper()}"
    words, ours = (_TUNED.intersection(re.split(r"[^a-z0-9]+", text)) for text in (name, model))
    if tuned := sorted(words ^ ours):
        return f"a model that is {'' if tuned[0] in words else 'not '}{tuned[0]}"
    versions, own_versions = _versions(name), _versions(model)
    shared = versions.keys() & own_versions.keys()
    others = [word for word in shared if versions[word].isdisjoint(own_versions[word])]
    if own_versions and not shared:
        others = list(versions)
    return ", ".join(" ".join(filter(None, (word, *sorted(versions[word])))) for word in others)


def _versions(name: str) -> dict[str, set[str]]:
    """The words of a name that may name a family of models, with the version numbers after them, "" for none."""
    found: dict[str, set[str]] = defaultdict(set)
    for word, number in _WORD.findall(name):
        if word not in _NO_NAMES:
            found[word].add(number)
    return found
