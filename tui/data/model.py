"""A model as it was opened: its checkpoint with the tree of its projections, or its stored spectra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rankscope.engine.calibration.said import Said
from rankscope.engine.catalogue.rules import BLOCKS
from rankscope.engine.catalogue.tree import Tree, build_tree, model_order
from rankscope.engine.catalogue.whole_factors import CUT
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.checkpoint.open import Checkpoint, open_checkpoint
from rankscope.engine.checkpoint.urls import stored_name
from rankscope.engine.derive.difference import is_delta
from rankscope.engine.derive.head_matrices import head_of
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from .phrases import UNREAD_ADVICE


@dataclass(frozen=True, slots=True)
class Model:
    """An opened model. If its weights could not be opened but spectra of it are stored, `checkpoint` is None and
    `reason` tells why.

    `said`: what the file of its weighting says about it, None without one.
    `further`: matrices made of several (see stacks), shown beside the projections and never counted among them.
    `multiplied`: states of projections that the tree shows as products instead (see gauged_model.fixed).
    `parts`: for a series (series_model.py) the folders in the store by the prefix of their models' keys; `part_names`
        has a line about each.
    `against`: the name of the other model if the projections are differences from it (see deltas).
    """

    name: str
    checkpoint: Checkpoint | None
    tree: Tree
    folder: str
    reason: str = ""
    said: Said | None = None
    further: tuple[Projection, ...] = ()
    multiplied: tuple[Projection, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    part_names: tuple[str, ...] = ()
    against: str = ""

    @property
    def every(self) -> tuple[Projection, ...]:
        """The projections and the further matrices."""
        return (*self.tree.projections, *self.further)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the model, one line each."""
        if self.checkpoint is None:
            return ()
        cut = [p for p in self.tree.projections if p.note.endswith(CUT)]
        parts = (f"{len(cut)} matrices are parts of whole ones: {cut[0].address} is {cut[0].note}",) if cut else ()
        parts = (*self.tree.lines, *parts)
        if not self.tree.by_shape:
            return (*self.checkpoint.warnings, *parts)
        kind = printable(str(self.checkpoint.config.get("model_type") or ""))
        names = ", ".join(map(printable, self.tree.by_shape))
        why = f"model_type {kind} is not known" if kind else "there is no model_type"
        line = f"{why}: {names} split as the heads and the shape of the output matrix prove it"
        return (*self.checkpoint.warnings, line, *parts)


def open_model(model: str, root: Path, access: Access = Access.RANGES, *, or_stored: bool = True) -> Model:
    """Open a checkpoint by name or, if that fails and `or_stored` is set, what the store holds of it.

    Raises:
        InputError: neither exists.
    """
    from rankscope.store.folders import model_folder
    from rankscope.store.listings import FileListings

    try:
        checkpoint = open_checkpoint(model, access, FileListings(root))
    except InputError as error:
        if not or_stored or (stored := open_stored(model, root)) is None:
            raise
        if not stored.tree.projections:
            raise InputError(
                f"no spectra of {printable(model)} are stored that can be read: see  rankscope ls"
            ) from None
        return replace(stored, reason=str(error))
    return Model(checkpoint.name, checkpoint, build_tree(checkpoint), model_folder(checkpoint.identity))


def open_stored(model: str, root: Path) -> Model | None:
    """The stored spectra of a model by its name, path or folder in the store; the newest per address.

    Raises:
        InputError: its folder in the store cannot be read.
    """
    from rankscope.store.models import find_model
    from rankscope.store.spectra import SpectraStore

    found = find_model(root, {model, stored_name(model)})
    if found is None:
        return None
    if found.unread:
        raise InputError(f"{found.unread} {UNREAD_ADVICE}")
    stored = SpectraStore(root, found.folder).stored()
    projections = map(stored.projection, sorted(stored, key=stored.computed_at))
    newest = {p.address: _placed(p) for made in projections for p in _own(made)}
    return Model(found.name, None, Tree(tuple(sorted(newest.values(), key=model_order)), True), found.folder)


def _own(projection: Projection) -> tuple[Projection, ...]:
    """The matrices of the checkpoint behind a stored spectrum: the matrix itself, that of a state, a difference or a
    product of factors, or those that a head is made from; none for other derived matrices."""
    made = projection.derived
    if made is None or projection.is_product:
        return (projection,)
    if made.is_further and not is_delta(projection):
        return made.parents if head_of(projection) else ()
    return made.parents[:1]


def _placed(projection: Projection) -> Projection:
    """The projection as it is, or among the others if its place exists in no tree: a file may come from anybody."""
    if projection.block in BLOCKS and projection.layer is not None:
        return projection
    return replace(projection, block="other", layer=None, expert=None)
