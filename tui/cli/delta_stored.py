"""Stored differences of two checkpoints, opened as the projections of a model so that every view can show them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rankscope.engine.catalogue.tree import matches
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from ..data.chosen_weighting import NONE, choose
from ..data.deltas import matched, stored_deltas, with_deltas
from ..data.gauged_model import RAW
from ..data.model import open_model
from ..data.session import Session
from ..drawing.console import say
from .opening import open_spectra


def open_deltas(args: Namespace, root: Path) -> Session:
    """A session of A that shows the differences B - A: all of them, or only stored ones if the weights are gone.

    Raises:
        InputError: a model cannot be opened, or none of its differences is stored.
    """
    session = open_spectra(args.model, root, NONE, None, RAW)
    found = _deltas(session, args, root)
    if not any(session.has(p) for p in found):
        names = f"{printable(args.model)} {printable(args.against)}"
        weight = "" if args.weight == NONE else f" --weight {printable(args.weight)}"
        raise InputError(f"none of this is computed yet: run  rankscope delta {names}{weight}")
    session.show(with_deltas(session.raw, found))
    return session


def _deltas(session: Session, args: Namespace, root: Path) -> list[Projection]:
    under = choose(args.weight, session.raw, root, say)
    try:
        second = open_model(args.against, root, Access.CACHE)
    except InputError:
        second = None  # its weights are gone: what is stored of the differences is kept with A
    if second is not None and session.raw.checkpoint is not None and second.checkpoint is not None:
        return list(matched(session.raw, second, under, args.filter).deltas)
    stored = stored_deltas(session.store.stored(), args.against, under.name if under is not None else "")
    return [p for p in stored if not args.filter or matches(p.address, args.filter)]
