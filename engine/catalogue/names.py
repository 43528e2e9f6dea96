"""The place of a tensor, by its name: the tower, the layer, the expert, and the path inside the layer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

_LISTS = frozenset((
    "layer", "layers", "h", "block", "blocks", "resblocks", "decoder_layer", "blk", "albert_layer_groups", "stage",
    "stages", "mtp", "mtp_layers", "mtp_block", "mtp_blocks",
))  # fmt: skip
_STAGES = frozenset(("layers", "stage", "stages"))
_STAGED = frozenset(("layer", "layers", "block", "blocks"))
_EXPERTS = frozenset(("experts", "local_experts", "moe", "ffn_gate", "ffn_up", "ffn_down"))
_LINEAR_ATTENTION_PARTS = re.compile(r"att(?:n|ention)\.(?:\w+\.)?(?:[qkv]_conv1d|A_log)$")
_ATTENTION_WORD = re.compile(r"(?:\w+\.)*?\w*att(?:n|ention)\b")
_BLOCK_LISTS = re.compile(r"att(?:n|ention)|ffn")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:base_model\.model|module|_orig_mod|_fsdp_wrapped_module|base_layer)\.")
_TOWERS = (
    ("mtp", re.compile(r"(?:^|\.)mtp")),
    ("qformer", re.compile(r"qformer")),
    ("vision", re.compile(r"vision|visual|image|(?:^|\.)v$")),
    ("audio", re.compile(r"audio|speech|(?:^|\.)a$")),
)
_NESTED = (
    "text_config", "llm_config", "language_config", "thinker_config.text_config", "llm_cfg", "thinker_config",
    "generator_config", "language_model_config",
)  # fmt: skip


class Location(NamedTuple):
    """The place of a tensor: `prefix` comes before the layer list, `path` is inside the layer.

    For the low-rank adapter of the tensor at `path`, `lora` is "A", "B" or "BA", with the adapter's name if it has
    one; else it is "".
    """

    prefix: str
    layer: int
    expert: int | None
    path: str
    lora: str = ""


def locate(name: str) -> Location | None:
    """The place of a tensor; None if it is outside of layers."""
    head, found, tail = name.partition(".experts.")
    number, _, rest = tail.partition(".")
    if rest and (expert := _number(number)) is not None and (place := _locate(f"{head}{found}0.{rest}")):
        return Location(place.prefix, place.layer, expert, place.path, place.lora)
    return _locate(name)


@lru_cache(maxsize=4096)  # one place for all experts of a layer: 1 us instead of 6
def _locate(name: str) -> Location | None:
    words = words_of(name)
    # `layers.0.weight` is a step of a head, not a layer with tensors.
    last = len(words) - (3 if words[-1] in ("weight", "bias") else 2)
    start = next((i for i in range(last) if words[i] in _LISTS and _number(words[i + 1]) is not None), None)
    return None if start is None else _location_at(words, start)


def locate_in(name: str, lists: Collection[str]) -> Location | None:
    """The place of a tensor in the first of these lists of layers that its name contains; None if there is none."""
    words = words_of(name)
    for start in _list_positions(words):
        if ".".join(words[: start + 1]) in lists:
            place = _location_at(words, start)
            if "." not in place.path and _BLOCK_LISTS.search(words[start]):
                # XLM's `attentions` and `ffns`: each list has one block of every layer, and its name says which.
                return place._replace(path=f"{words[start]}.{place.path}")
            # LXMERT has `layer`, `r_layers` and `x_layers` side by side.
            return place._replace(prefix=".".join(filter(None, (place.prefix, words[start]))))
    return None


def numbered(name: str) -> list[str]:
    """The beginnings of a name that a number and a module follow: `a.b` for `a.b.3.c.weight`."""
    words = words_of(name)
    return [".".join(words[: start + 1]) for start in _list_positions(words)]


def words_of(name: str) -> list[str]:
    """The words of a name, without the wrappers that training puts around modules."""
    return (_WRAPPERS.sub("", name) if _might_be_wrapped(name) else name).split(".")


def _list_positions(words: Sequence[str]) -> list[int]:
    last = len(words) - (3 if words[-1] == "weight" else 2)
    return [i for i in range(last) if _number(words[i + 1]) is not None and _number(words[i]) is None]


def _location_at(words: list[str], start: int) -> Location:
    """The place of a tensor whose list of layers is the word at `start`."""
    prefix, layer, path = words[:start], int(words[start + 1]), words[start + 2 :]
    if words[start].startswith("mtp"):
        prefix.append("mtp")
    elif len(path) > 2 and words[start] in _STAGES and path[0] in _STAGED and _number(path[1]) is not None:
        # Swin and similar: stages of different widths, each with blocks that count from 0.
        prefix.append(f"stage{layer}")
        layer, path = int(path[1]), path[2:]
    if path[-1] == "weight":
        path.pop()
    lora = _take_adapter(path)
    expert = None
    for i, word in enumerate(path[:-1]):
        if word in _EXPERTS and (expert := _number(path[i + 1].removeprefix("expert_"))) is not None:
            del path[i + 1]
            break
    return Location(".".join(prefix), layer, expert, ".".join(path), lora)


def _take_adapter(path: list[str]) -> str:
    """For `q_proj.lora_A.name` return "A_name" (for a product of both "BA_name"), and shorten `path` to that of the
    tensor it adapts; for any other path return ""."""
    for i, word in enumerate(path[-2:], max(0, len(path) - 2)):
        if word in ("lora_A", "lora_B", "lora_BA", "lora_embedding_A", "lora_embedding_B"):
            adapter = [name for name in path[i + 1 :] if name != "default"]
            del path[i:]
            return "_".join((word.rpartition("_")[2], *adapter))
    return ""


def _number(word: str) -> int | None:
    """The number of a layer or an expert, of up to nine ASCII digits; None for any other word."""
    return int(word) if word.isdigit() and word.isascii() and len(word) < 10 else None


def _might_be_wrapped(name: str) -> bool:
    return "module." in name or "_mod" in name or "base_" in name


@lru_cache(maxsize=65536)
def is_linear_part(path: str) -> bool:
    """True if only linear attention has a tensor at this path: a convolution of keys, a decay."""
    return _LINEAR_ATTENTION_PARTS.search(path) is not None


@lru_cache(maxsize=65536)
def attention_of(path: str) -> str:
    """The path of the attention module that contains this path; "" if it has no name."""
    found = _ATTENTION_WORD.match(path)
    return found[0] if found else ""


def modality(prefix: str) -> str:
    """`vision`, `audio`, `mtp`, or "" for the text."""
    return next((name for name, pattern in _TOWERS if pattern.search(prefix)), "")


def inner_config(config: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """The part of a nested config for the tower that a prefix belongs to.

    A tower without a type of its own gets that of the model.
    """
    tower = modality(prefix)
    if tower in ("vision", "audio"):
        inner = config.get(f"{tower}_config") or _at_dotted_key(config, f"thinker_config.{tower}_config")
        if not isinstance(inner, Mapping):
            return config
        own = inner.get("model_type")
        # Kimi-K2.5 gives its tower no type, DeepSeek-OCR one that says nothing: then the model's type says more.
        return {**inner, "model_type": config.get("model_type", "") if own in (None, "", tower) else own}
    words = prefix.split(".")
    for word in words:
        for key in (f"{word}_config", word):  # qformer_config, talker_config; the encoder and decoder of T5Gemma
            inner = config.get(key)
            if isinstance(inner, Mapping) and word not in ("text", "model"):
                return inner_config(inner, "") if "model_type" in inner or len(inner) > 1 else config
    for key in _NESTED:
        if isinstance(inner := _at_dotted_key(config, key), Mapping):
            return {**config, **inner}
    return config


def _at_dotted_key(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def tower_labels(prefixes: Iterable[str]) -> dict[str, str]:
    """A label for every layer list: "" for a single one, else as few words as distinguish it from the others."""
    groups: dict[str, list[str]] = defaultdict(list)
    for prefix in sorted(set(prefixes)):
        groups[modality(prefix)].append(prefix)
    labels: dict[str, str] = {}
    for kind, group in groups.items():
        words = [prefix.split(".") if prefix else [] for prefix in group]
        for prefix, own in zip(group, _distinct(words), strict=True):
            label = "_".join(dict.fromkeys(filter(None, [kind, *own])))
            labels[prefix] = "other_tower" if label == "other" else label  # addresses in `other.` are tensors
    return labels


def _distinct(words: Sequence[Sequence[str]]) -> list[list[str]]:
    """For each list, the words that distinguish it from the others."""
    if len(words) == 1:
        return [[]]
    shared = set(words[0]).intersection(*words[1:])
    own = [[word for word in group if word not in shared] for group in words]
    firsts: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(own):
        firsts[group[0] if group else ""].append(number)
    found: list[list[str]] = [[] for _ in words]
    for first, numbers in firsts.items():
        if len(numbers) == len(words):  # the rest cannot be told apart either
            return own
        for number, rest in zip(numbers, _distinct([own[n][1:] for n in numbers]), strict=True):
            found[number] = [first, *rest] if first else rest
    return found
