"""Finding lists of layers with unknown names, by their structure: numbered modules that contain projections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from .names import Location, locate_in, numbered

_NO_LAYERS = re.compile(
    r"expert|head|adapter|lora|merger|mlp|ffn(?!s$)|feed_forward|proj(?:$|_|ection|ector)|attn$|attention$"
)


def layer_lists(names: Iterable[str], holds_projection: Callable[[Location], bool]) -> frozenset[str]:
    """The lists of layers among names without a known word, dotted (`lxmert.encoder.r_layers`).

    A list is followed by a number and has the same projection under two numbers or more; with a single number it is a
    list if another list has the same last word. Experts, heads and adapters are not lists, nor are blocks made of
    numbered parts (`mlp.0`).
    """
    patterns: dict[tuple[str, str], tuple[Location, set[int]]] = {}
    for name in names:
        for head in numbered(name):
            if not _NO_LAYERS.search(head.rpartition(".")[2]) and (place := locate_in(name, frozenset((head,)))):
                patterns.setdefault((head, place.path), (place, set()))[1].add(place.layer)
    counted = {head: 0 for head, _ in patterns}
    for (head, _), (place, numbers) in patterns.items():
        if len(numbers) > counted[head] and holds_projection(place):
            counted[head] = len(numbers)
    words = {head.rpartition(".")[2] for head, count in counted.items() if count > 1}
    return frozenset(head for head, count in counted.items() if count and head.rpartition(".")[2] in words)
