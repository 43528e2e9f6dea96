"""Opening a model's stored spectra for commands without a screen, and the lines they print on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from rankscope.engine.calibration.said import Said, sink_lines
from rankscope.engine.catalogue.tree import Tree, matches, model_order
from rankscope.engine.checkpoint.hub import Access
from rankscope.engine.compute.engine import ComputeSettings
from rankscope.engine.errors import InputError, printable
from rankscope.engine.spectrum import Projection

from ..data.chosen_weighting import NONE, choose, in_state
from ..data.gauged_model import RAW
from ..data.model import Model, open_model
from ..data.phrases import UNREAD_ADVICE
from ..data.session import CLOSE_SECONDS, Session
from ..data.stacks import with_stacks
from ..drawing.console import say


def save(sessions: Iterable[Session]) -> str:
    """Stop computing, save what is finished, and return a line: how much was saved since the program began."""
    until = time.monotonic() + CLOSE_SECONDS
    opened = list(sessions)
    for session in opened:
        session.stop()
    for session in opened:
        session.close(max(0.0, until - time.monotonic()))
    count, lost = sum(session.saved for session in opened), unsaved(opened)
    saved = f"{count} new {'spectrum is' if count == 1 else 'spectra are'} saved"
    return "; ".join(filter(None, [saved, lost])) if count or lost else "nothing new was computed"


def unsaved(sessions: Iterable[Session]) -> str:
    """A line that counts spectra lost in closed sessions because the disk was full, "" if there are none."""
    count = sum(session.unsaved for session in sessions)
    are = "spectrum is" if count == 1 else "spectra are"
    return f"{count} computed {are} not saved: the disk is full" if count else ""


def wanted_of(tree: Tree, pattern: str | None) -> list[Projection]:
    """The projections of a tree that a filter names.

    Raises:
        InputError: it names none.
    """
    wanted = tree.scanned(pattern)
    if not wanted:
        missing = f"no address matches {printable(pattern)!r}" if pattern else "no matrix in it"
        raise InputError(f"{missing}: see  rankscope tree MODEL")
    return wanted


def under(
    model: Model, root: Path, weight: str, pattern: str | None, gauge: str = RAW, *, with_derived: bool = False
) -> Model:
    """The model in a state: under the weighting and in the gauge that a user names, only with projections that the
    filter names. For `none` and RAW it is the model itself. `with_derived` adds matrices made of several (see stacks).

    Raises:
        InputError: the weighting cannot be had, or has no second moments of any projection; no gauge can be fixed.
    """
    weighting = choose(weight, model, root, say)
    if with_derived and gauge == RAW:
        beside = with_stacks(model, root, weighting).further
        model = replace(model, further=tuple(p for p in beside if pattern is None or matches(p.address, pattern)))
    if weighting is None and gauge == RAW:
        return model
    try:
        of_products = gauge != RAW and not model.tree.scanned(pattern)  # addresses that exist only in the gauge
        wanted = None if of_products else _named(model, pattern)
        return in_state(model, root, weighting, gauge, wanted)
    except InputError as error:
        raise InputError(f"{_options(weight, gauge)}: {error}") from None


def _named(model: Model, pattern: str | None) -> list[Projection]:
    """The projections that a filter names; if it names only matrices made of several, the projections they are made of.

    Raises:
        InputError: it names none.
    """
    parts = {q.key for p in model.further for q in p.parents}
    if parts and not model.tree.scanned(pattern):
        return [p for p in model.tree.projections if p.key in parts]
    return wanted_of(model.tree, pattern)


def own_of(model: Model, pattern: str | None) -> list[Projection]:
    """The projections of the model itself that a filter names. None, if the model was opened `with_derived` and the
    filter names only matrices made of several.

    Raises:
        InputError: it names neither.
    """
    return model.tree.scanned(pattern) or ([] if model.further else wanted_of(model.tree, pattern))


def shown_of(session: Session, pattern: str | None) -> list[Projection]:
    """The projections that a filter names, and the matrices made of several: stored ones, or all if it names nothing
    else.

    Raises:
        InputError: it names none.
    """
    own, beside = own_of(session.model, pattern), session.model.further
    return sorted((*own, *(p for p in beside if not own or session.has(p))), key=model_order) if beside else own


def lines_of(said: Said | None) -> Iterator[str]:
    """Lines to know about ranks under a file of second moments; none for None."""
    if said is not None:
        yield from sink_lines(said.figures)
        yield from said.lines


def _options(weight: str, gauge: str) -> str:
    """The options that a user writes for this weighting and gauge, "" for the defaults."""
    weighting = f"--weight {printable(weight)}" if weight != NONE else ""
    return " ".join(filter(None, (weighting, f"--gauge {gauge}" if gauge != RAW else "")))


def open_spectra(
    name: str, root: Path, weight: str, pattern: str | None, gauge: str, *, with_derived: bool = False
) -> Session:
    """A session that has read the store, opened without a download: of the weights as they are, or of those projections
    that a filter names, under a weighting and in a gauge. `with_derived`: see `under`.

    Raises:
        InputError: no such model is found, its folder in the store cannot be read, or as `under`.
    """
    model = under(open_model(name, root, Access.CACHE), root, weight, pattern, gauge, with_derived=with_derived)
    session = Session(model, root, lambda _: None, ComputeSettings())
    session.load()
    for path, sentence in session.store.damaged:
        if path == session.store.folder:
            raise InputError(f"{path}: {sentence} {UNREAD_ADVICE}")
    say_opened(model, session)
    return session


def stored_of(session: Session, name: str, wanted: list[Projection], weight: str, gauge: str) -> list[Projection]:
    """Those of the projections that are stored.

    Raises:
        InputError: none is.
    """
    stored = [p for p in wanted if session.has(p)]
    if not stored:
        others = len(session.store.stored())
        found = f"none of these is computed; {others} other spectra are stored of" if others else "nothing is stored of"
        read = " that can be read" if session.store.damaged else ""
        derived = "--derived mla" if all(p in session.model.further for p in wanted) else ""
        command = " ".join(filter(None, (f"rankscope scan {printable(name)}", derived, _options(weight, gauge))))
        raise InputError(f"{found} {printable(name)}{read}: run  {command}")
    return stored


def say_opened(model: Model, session: Session) -> None:
    """Print what to know about a model before its numbers."""
    checkpoint = model.checkpoint
    for warning in model.warnings:
        say(warning)
    if checkpoint and not checkpoint.config and not model.tree.known:
        say("there is no config.json: matrices that may fuse several projections are not split")
    if model.reason:
        say(f"{model.reason}; shown is what is stored of it, which may be a part")
    if checkpoint and checkpoint.quantisation:
        say(f"{model.name} is quantised: these are spectra of its {checkpoint.quantisation} weights")
    say_damage(session)


def say_damage(session: Session) -> None:
    """Print which files of the store have turned out to be damaged or unreadable since the last call."""
    for path, sentence in session.damage():
        say(f"{path}: {sentence}")


def verify(session: Session, projections: Iterable[Projection]) -> None:
    """Read the stored values of these: damage is reported, and damaged ones count as not computed."""
    session.verify([p.key for p in projections])
    say_damage(session)
