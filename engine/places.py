"""Where a tensor's name says it stands: the tower, the layer, the expert, and the path inside the layer."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_LISTS = r"layers?|h|blocks?|resblocks|decoder_layer|blk|albert_layer_groups|stages?|mtp(?:_layers|_blocks?)?"
LAYER = re.compile(rf"(?:^|\.)({_LISTS})\.([0-9]{{1,9}})\.")
_STAGED = re.compile(r"(?:layers|blocks|layer|block)\.([0-9]{1,9})\.")
_EXPERT = re.compile(
    r"(?:(?<!shared_)(?<=experts\.)(?:expert_)?|(?<=moe\.)|(?<=ffn_gate\.)|(?<=ffn_up\.)|(?<=ffn_down\.))([0-9]{1,9})(?:\.|$)"
)
_SHARED = re.compile(r"shared_experts\.[0-9]")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:base_model\.model|module|_orig_mod|_fsdp_wrapped_module|base_layer)\.")
_LORA = re.compile(r"\.lora_(?:embedding_)?([AB])(?:\.(\w+))?$")
_TOWERS = (
    ("mtp", re.compile(r"(?:^|\.)mtp")),
    ("qformer", re.compile(r"qformer")),
    ("vision", re.compile(r"vision|visual|image|(?:^|\.)v$")),
    ("audio", re.compile(r"audio|speech|(?:^|\.)a$")),
)
_NESTED = (
    *("text_config", "llm_config", "language_config", "thinker_config.text_config", "llm_cfg"),
    *("thinker_config", "generator_config", "language_model_config"),
)


class Place(NamedTuple):
    """Where a tensor's name says it stands: `prefix` before the layer list, `path` inside the layer.

    `lora` is "A" or "B", and the name of an adapter that has one, for the low-rank adapter of the tensor that
    `path` names.
    """

    prefix: str
    layer: int
    expert: int | None
    path: str
    lora: str = ""


def locate(name: str) -> Place | None:
    """The place of a tensor; None outside of layers."""
    bare = _WRAPPERS.sub("", name) if _might_be_wrapped(name) else name
    anchor = LAYER.search(bare)
    if anchor is None:
        return None
    prefix, layer, path = bare[: anchor.start()], int(anchor[2]), bare[anchor.end() :].removesuffix(".weight")
    if anchor[1].startswith("mtp"):
        prefix = f"{prefix}.mtp".strip(".")
    elif (inner := _STAGED.match(path)) and anchor[1] in ("layers", "stage", "stages"):
        # Swin and its like: stages of other widths, each with blocks that count from 0.
        prefix = f"{prefix}.stage{layer}".strip(".")
        layer, path = int(inner[1]), path[inner.end() :]
    lora = ""
    if ".lora_" in path and (found := _LORA.search(path)):
        adapter = found[2] or "default"
        lora, path = found[1] if adapter == "default" else f"{found[1]}_{adapter}", path[: found.start()]
    if "experts." in path or "moe." in path or "ffn_" in path:
        expert = None if _SHARED.search(path) else _EXPERT.search(path)
        if expert:
            return Place(prefix, layer, int(expert[1]), f"{path[: expert.start()]}{path[expert.end() :]}".rstrip("."), lora)
    return Place(prefix, layer, None, path, lora)


def _might_be_wrapped(name: str) -> bool:
    return "module." in name or "_mod" in name or "base_" in name


def modality(prefix: str) -> str:
    """`vision`, `audio`, `mtp`, or "" for the text."""
    return next((name for name, pattern in _TOWERS if pattern.search(prefix)), "")


def inner_config(config: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """The part of a nested config that describes the tower a prefix belongs to."""
    tower = modality(prefix)
    if tower in ("vision", "audio"):
        inner = config.get(f"{tower}_config") or _at(config, f"thinker_config.{tower}_config")
        return {**config, **inner} if isinstance(inner, Mapping) else config
    words = prefix.split(".")
    for word in words:
        for key in (f"{word}_config", word):  # qformer_config, talker_config; the encoder and decoder of T5Gemma
            inner = config.get(key)
            if isinstance(inner, Mapping) and word not in ("text", "model"):
                return inner_config(inner, "") if "model_type" in inner or len(inner) > 1 else config
    for key in _NESTED:
        if isinstance(inner := _at(config, key), Mapping):
            return dict(inner)
    return config


def _at(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def tower_labels(prefixes: Iterable[str]) -> dict[str, str]:
    """A label for every layer list: "" for the only one, else what tells it apart in as few words as do."""
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
    """Of each list, the words that tell it from the others."""
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
