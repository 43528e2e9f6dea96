"""A series: several models, for instance checkpoints of one training, read as one model whose layers they are.

So every view has the models as its axis: a role of the series is that role over all layers of each model. A filter that
names one projection shows that projection by model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rankscope.engine.catalogue.tree import Tree
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.revisions import is_pattern, models_named
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from .grid import OfSeries
from .model import Model, open_model

MODEL = "model"
"""The word for models of a series whose names have no number."""
_LONGEST = 4300
"""The most digits of a number in a name that Python can convert."""


def is_series(names: Sequence[str]) -> bool:
    """Whether the names given by a user form a series and not one model."""
    return len(names) > 1 or any(map(is_pattern, names))


def open_series(names: Sequence[str], root: Path) -> Model:
    """Open the models with these names or patterns, reading only headers, or what is stored of them.

    Their projections have addresses such as `step.1000.layers.3.attention.key`, by the numbers in the models' names if
    these differ, else `model.0.layers...` in the order of the names.

    Raises:
        InputError: one of them cannot be opened, or a pattern matches nothing.
    """
    found = models_named(names)
    opened = [_opened(name, root) for name in found]
    word, numbers = numbered([_label(name) for name in found])
    order = sorted(range(len(found)), key=numbers.__getitem__)
    projections = tuple(of_series(p, at, word, numbers[at]) for at in order for p in opened[at].tree.scanned())
    labels = [f"{word}.{numbers[at]} is {printable(found[at])}" for at in order]
    return Model(
        f"{len(found)} models: {', '.join(printable(_label(found[at])) for at in order)}",
        None,
        Tree(projections, True),
        "series",
        "a series shows what is stored of its models: rankscope scan computes it",
        parts={str(at): model.folder for at, model in enumerate(opened)},
        part_names=tuple(labels),
    )


def numbered(labels: Sequence[str]) -> tuple[str, list[int]]:
    """The word for the models, and the number of each: from the first number that differs between their names, as
    `step` and 1000 of `step1000-tokens4B`; else MODEL and their positions."""
    digits = [re.findall(r"\d+", label) for label in labels]
    for place in range(min(map(len, digits), default=0)):
        if any(len(found[place]) > _LONGEST for found in digits):
            continue
        numbers = [int(found[place]) for found in digits]
        if len(set(numbers)) == len(labels) > 1:
            words = {(re.findall(r"[^\W\d_]*(?=[\W_]*\d)", label) or [""])[0].lower() for label in labels}
            return words.pop() or MODEL if len(words) == 1 and not place else MODEL, numbers
    return MODEL, list(range(len(labels)))


def _opened(name: str, root: Path) -> Model:
    model = open_model(name, root, Access.RANGES)
    if model.checkpoint is None and "@" in name and not Path(name).exists():
        # Stored spectra of a repo do not tell their revision.
        raise InputError(f"{printable(name)}: {model.reason}")
    return model


def _label(name: str) -> str:
    """The revision of a Hub id, or the last part of a path."""
    model, at, revision = name.partition("@")
    return revision if at and not Path(name).exists() else Path(model).name


def of_series(inside: Projection, at: int, word: str, number: int) -> OfSeries:
    """A projection of the model that was named at this place, as one of the series."""
    from rankscope.store.joined import joined_key

    placed = {
        "address": f"{word}.{number}.{inside.address}",
        "tower": word,
        "layer": number,
        "key": joined_key(str(at), inside.key),
    }
    return OfSeries(**{field.name: getattr(inside, field.name) for field in fields(Projection)} | placed, inside=inside)
