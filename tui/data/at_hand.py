"""The models that can be opened without the network: what is known of each at once, and what its headers tell."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.catalogue.tree import Tree, build_tree
from rankscope.engine.checkpoint.hub import Access, HubPlace, cached_models, whole
from rankscope.engine.checkpoint.open import demo_file, open_checkpoint
from rankscope.engine.checkpoint.urls import is_url
from rankscope.engine.errors import InputError
from rankscope.store.folders import model_folder
from rankscope.store.listings import FileListings

from .model import open_stored

if TYPE_CHECKING:
    from rankscope.store.models import StoredModel

DEMO = "demo"


@dataclass(frozen=True, slots=True)
class AtHand:
    """A model, by the `name` that opens it. `kind` says what there is of it, `where` where its weights are, `trouble`
    what is wrong with either ("" for nothing); `used` is when it was last opened, in seconds since 1970."""

    name: str
    kind: str
    where: str
    trouble: str = ""
    used: float | None = None

    @property
    def title(self) -> str:
        """Its name without the folder that it is in."""
        return Path(self.name).name if self.name.startswith("/") else self.name


@dataclass(frozen=True, slots=True)
class Headers:
    """The contents of a model's headers, and how many of its projections are stored. `size`: bytes of its weights, None
    if they are gone."""

    layers: int
    projections: int
    stored: int
    size: int | None


def choices(root: Path, used: Mapping[str, float] | None = None) -> list[AtHand]:
    """The models that can be opened: stored ones, then cached ones, then the demo; first of all those that were opened
    last, by `used`, which maps their folders in the store to times."""
    from rankscope.store.models import stored_models

    when = used or {}
    found = {model.name: _stored(model, when.get(model.folder)) for model in stored_models(root)}
    demo = AtHand(DEMO, "SmolLM2-135M-Instruct, 4-bit", "comes with it")
    with suppress(InputError):  # the demo is not installed
        path = demo_file().resolve()
        demo = replace(demo, used=when.get(model_folder(path)))
        if (kept := found.pop(str(path), None)) is not None:
            found[DEMO] = replace(demo, kind=f"{demo.kind}, {kept.kind}", trouble=kept.trouble)
    for name in cached_models():
        if name not in found:
            is_whole = whole(HubPlace(name))[0] is not None
            last = when.get(model_folder(name))
            trouble = "" if is_whole else "incomplete"
            found[name] = AtHand(
                name, f"in the Hub cache{'' if is_whole else ', incomplete'}", "Hub cache", trouble, last
            )
    found.setdefault(DEMO, demo)
    return sorted(found.values(), key=lambda choice: -(choice.used or 0.0))


def headers(name: str, root: Path) -> Headers | None:
    """Read the headers of a model on this machine, without the network; None if that is not enough or
    the model cannot be opened."""
    from rankscope.store.spectra import SpectraStore

    try:
        if is_url(name):
            raise InputError(name)
        checkpoint = open_checkpoint(name, Access.CACHE, _KeptListings(root))
        tree, folder, size = build_tree(checkpoint), model_folder(checkpoint.identity), checkpoint.bytes
    except InputError:
        stored_model = open_stored(name, root)
        if stored_model is None:
            return None
        tree, folder, size = stored_model.tree, stored_model.folder, None
    scanned = tree.scanned()
    stored = SpectraStore(root, folder).stored() if (root / folder).is_dir() else ()
    return Headers(_layers(tree), len(scanned), sum(p.key in stored for p in scanned), size)


class _KeptListings(FileListings):
    """Listings that were made before, and no new ones: making a long one takes seconds."""

    def get(self, key: str) -> str:
        found = super().get(key)
        if found is None:
            raise InputError("it has not been opened before")
        return found


def _layers(tree: Tree) -> int:
    return len({(p.tower, p.layer) for p in tree.scanned() if p.layer is not None})


def _stored(model: StoredModel, used: float | None) -> AtHand:
    if model.unread:
        kind = "its folder in the store cannot be read: see  rankscope ls"
        return AtHand(model.name, kind, "store", kind, used)
    files = len(model.damaged)
    trouble = f"{files} damaged or unread file{'s' * (files > 1)}: see  rankscope ls" if files else ""
    kind = ", ".join(filter(None, [f"{model.spectra} spectra stored", trouble]))
    return AtHand(model.name, kind, _where(model.name), trouble, used)


def _where(name: str) -> str:
    if is_url(name):
        return name
    if not name.startswith("/"):
        with suppress(InputError):
            return "Hub cache" if whole(HubPlace(name))[0] is not None else "Hub"
        return "Hub"
    path = Path(name)
    try:
        return str(path.parent) if path.exists() else f"gone from {path.parent}"
    except OSError:
        return str(path.parent)
