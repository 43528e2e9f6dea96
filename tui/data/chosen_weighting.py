"""The weighting that a user names (none, the gains of the norms, or a file), and a model under it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rankscope.engine.derive.gauge import FIXED, weighting_label, what_is_fixed
from rankscope.engine.derive.weighting import CENTRED_NAME, WEIGHED, by_moment, is_weighted, weighted
from rankscope.engine.errors import InputError, WeightsError, printable
from rankscope.engine.spectrum import Operand, Projection

from .gauged_model import RAW, fixed
from .model import Model
from .session import Session
from .stacks import with_stacks, with_stored
from .wording import told

if TYPE_CHECKING:
    from rankscope.engine.calibration.said import Said
    from rankscope.engine.moment import Form, Moment, Weighting

NONE, NORM = "none", "norm"
_CENTRED = re.compile(rf"{CENTRED_NAME}[: ]\s*(.*)", re.DOTALL)
"""The prefix before the name of a file whose second moments are to be taken about their mean."""
_NAMES = re.compile(r"imatrix|moments", re.IGNORECASE)
_SUMS = re.compile(rb'\.(xx|x2|count)"')
_HEAD = 4096
_MOST_FILES = 16
"""The most files whose first bytes are read."""


def choose(text: str, model: Model, root: Path, tell: Callable[[str], None]) -> Weighting | None:
    """The weighting that a text names: `none` (the result is None: the weights as they are), `norm`, the name of a
    file, or `centred:` and such a name.

    `tell` is called with lines that the user should know, for instance that the file may belong to another model.

    Raises:
        InputError: no such file, it cannot be read, or it holds no second moments.
    """
    if text == NONE:
        return None
    if text == NORM:
        return _norm(model, root)
    from rankscope.engine.calibration.file_weighting import open_weighting

    centred = _CENTRED.fullmatch(text)
    file = centred[1] if centred else text
    if centred and file in ("", NONE, NORM):
        raise InputError(f"moments of a file can be centred, as {CENTRED_NAME}:FILE, and nothing else")
    opened = open_weighting(file, model.name, model.checkpoint.config if model.checkpoint else {}, centred is not None)
    for line in opened.warnings:
        tell(line)
    return opened


def lasting(text: str) -> str:
    """The same name of a weighting, valid from any working directory: the name of a file becomes an absolute path."""
    centred = _CENTRED.fullmatch(text)
    file = centred[1] if centred else text
    if file in ("", NONE, NORM):
        return text
    with suppress(RuntimeError):  # ~ of an unknown user
        file = str(Path(file).expanduser().absolute())
    return f"{CENTRED_NAME}:{file}" if centred else file


def pooled(weighting: Weighting, model: Model, projections: Iterable[Projection]) -> Weighting:
    """The weighting that a plan of these projections uses instead of `weighting`: if there are experts among them, the
    second moments of a file pooled by layer.

    Raises:
        InputError: the moments are about the mean.
    """
    if weighting.is_centred:
        raise InputError(f"plans need moments as they are, not about the mean: leave out {CENTRED_NAME}:")
    from rankscope.engine.calibration.file_weighting import FileWeighting
    from rankscope.engine.calibration.pooled import PooledWeighting

    if isinstance(weighting, FileWeighting) and any(p.expert is not None for p in projections):
        return PooledWeighting(weighting, model.tree.projections)
    return weighting


def in_state(
    model: Model,
    root: Path,
    weighting: Weighting | None,
    gauge: str = RAW,
    wanted: Sequence[Projection] | None = None,
) -> Model:
    """A model whose matrices, or only the `wanted` ones, are under a weighting (None: none) and in a gauge; for neither
    the model itself. Reads the files that this needs.

    Raises:
        InputError: see `weighed` and gauged_model.fixed.
    """
    if weighting is None and gauge == RAW:
        return model
    if gauge != RAW:
        made = fixed(model, root, weighting, wanted)
    else:
        assert weighting is not None
        tree = model.tree if wanted is None else replace(model.tree, projections=tuple(wanted))
        made = weighed(replace(model, tree=tree), weighting)
    return replace(made, said=said_of(weighting, made.tree.projections))


def said_of(weighting: Weighting | None, projections: Iterable[Projection]) -> Said | None:
    """Facts from a file of moments that a user has to know about ranks under it; None if no file is at hand."""
    if weighting is None or isinstance(weighting, StoredWeighting) or weighting.name == NORM:
        return None
    from rankscope.engine.calibration.file_weighting import FileWeighting

    return weighting.said(projections) if isinstance(weighting, FileWeighting) else None


def weighted_by(projections: Iterable[Projection]) -> str:
    """A text for titles: `weighted by imatrix a.gguf (wiki.txt, 128 chunks)`, `gauge-fixed: gains folded`; "" for
    unmodified weights."""
    shown = list(projections)
    label = next(filter(None, map(weighting_label, shown)), "")
    gauge = what_is_fixed(shown)
    return "; ".join([*([f"weighted by {label}"] if label else []), *([f"gauge-fixed: {gauge}"] if gauge else [])])


def meant(
    text: str | None, model: Model, root: Path, tell: Callable[[str], None], gauge: str | None = None
) -> Callable[[Projection], bool]:
    """Return a function that tells whether a stored spectrum belongs to a weighting and a gauge, RAW or `fixed`; None
    matches any.

    `text` is the name of a weighting (`none`: spectra without one) or a file, which is recognised by its numbers,
    pooled or not, with biases or without. The noise that weighted spectra are compared with belongs to the weighting
    too, in the raw gauge.

    Raises:
        InputError: as `choose`.
    """
    under = _meant_by_weighting(text, model, root, tell)
    if gauge is None:
        return under
    name = "" if gauge == RAW else gauge
    return lambda p: (p.derived.gauge if p.derived is not None else "") == name and under(p)


def _meant_by_weighting(
    text: str | None, model: Model, root: Path, tell: Callable[[str], None]
) -> Callable[[Projection], bool]:
    if text is None:
        return lambda _: True
    if text == NONE:
        return lambda p: p.derived is None or not p.derived.weighting
    if text in (NORM, "imatrix", "moments", CENTRED_NAME):
        return lambda p: p.derived is not None and p.derived.weighting == text
    from rankscope.engine.calibration.appended import AppendedWeighting
    from rankscope.engine.calibration.file_weighting import FileWeighting

    weighting = choose(text, model, root, tell)
    assert isinstance(weighting, FileWeighting)
    every = model.tree.projections
    sources: list[tuple[Weighting, Iterable[Projection]]] = [(weighting, every)]
    if not weighting.is_centred:
        sources.append((pooled(weighting, model, every), (p for p in every if p.expert is not None)))
        sources.append((AppendedWeighting(weighting), (p for p in every if p.role == "key")))  # see latent_of
    taken = set()
    for source, fed in sources:
        for p in fed:
            with suppress(WeightsError):
                taken.add(source.moment(p).operands)
    return lambda p: p.derived is not None and _of_moment(p) in taken


def _of_moment(projection: Projection) -> tuple[Operand, ...]:
    """The operands of a derived matrix that come from the moment."""
    made = projection.derived
    assert made is not None
    balanced = by_moment(projection).derived if made.weighting and WEIGHED in made.formula else made
    return balanced.operands if balanced is not None else ()


class StoredWeighting:
    """A weighting whose source is not at hand: only the digests of the moments that stored spectra were computed with
    are known. Its spectra can be shown, but no new ones computed."""

    def __init__(self, model: Model, root: Path, name: str, label: str = "") -> None:
        """`label` restricts it to what was stored with this label; "" means all that has this name."""
        from rankscope.store.spectra import SpectraStore

        self.name = name
        self.is_centred = name == CENTRED_NAME
        self.label = label or "norm gains"
        stored = SpectraStore(root, model.folder).stored()
        projections = map(stored.projection, sorted(stored.derived(), key=stored.computed_at))
        self._made = {
            p.parents[0].key: made
            for p in projections
            if is_weighted(p) and (made := by_moment(p).derived)
            if made.weighting == name and label in ("", made.label)
        }

    def moment(self, projection: Projection) -> Moment:
        """See Weighting."""
        from rankscope.engine.moment import Moment

        made = self._made.get(projection.key)
        if made is None:
            raise WeightsError(f"it is not stored under {self.label}, which is not at hand to compute it")
        form = cast("Form", made.formula.removeprefix(WEIGHED))
        return Moment(form, projection.cols, made.operands)


@dataclass(frozen=True, slots=True)
class Offer:
    """A weighting that can be chosen: `text` is what a user would type, `about` an explanation. `stored` is name and
    label of a weighting whose spectra are stored but whose file is not at hand. `fixed`: in the fixed gauge. `delta`:
    of the differences of two models."""

    text: str
    about: str
    stored: tuple[str, str] | None = None
    fixed: bool = False
    delta: bool = False

    @property
    def words(self) -> str:
        """`norm`, `the fixed gauge`, `a.gguf in the fixed gauge`."""
        name = "" if self.text == NONE and self.stored is None else printable(self.text)
        gauge = "the fixed gauge" if self.fixed else ""
        return " in ".join(filter(None, [name, gauge]))

    def shown(self, model: Model, root: Path, tell: Callable[[str], None]) -> Model:
        """The model under this weighting and in this gauge.

        Raises:
            InputError: see `choose` and `in_state`.
        """
        weighting = self.weighting(model, root, tell)
        shown = in_state(model, root, weighting, FIXED if self.fixed else RAW)
        for line in shown.said.lines if shown.said is not None else ():
            tell(line)
        if self.fixed:
            return replace(shown, further=())
        if weighting is None:
            return shown
        if isinstance(weighting, StoredWeighting):
            return with_stored(shown, root, (weighting.name, weighting.label))
        return with_stacks(shown, root, weighting)

    def weighting(self, model: Model, root: Path, tell: Callable[[str], None]) -> Weighting | None:
        """The weighting that `text` names; see `choose`."""
        return (
            choose(self.text, model, root, tell) if self.stored is None else StoredWeighting(model, root, *self.stored)
        )


def offers(session: Session, given: Mapping[str, str]) -> list[Offer]:
    """The weightings that a user can choose: none, norm, the files that were `given` (with their labels, "" if not
    opened yet), files beside the model, and weightings of which only spectra are stored."""
    found = [Offer(NONE, "the weights as they are"), Offer(NORM, "by the gains of the norms that feed the projections")]
    files = {str(Path(text).expanduser().absolute()) for text in given}
    found += [Offer(text, label or "a file") for text, label in given.items()]
    found += [
        Offer(str(path), f"{kind}, beside the model") for path, kind in _beside(session.raw) if str(path) not in files
    ]
    others = ((name, label) for name, label in session.weightings() if name != NORM and label not in given.values())
    stored = Counter(others)
    found += [Offer(name, f"{count} stored: {label}", (name, label)) for (name, label), count in stored.items()]
    return found


def weighed(model: Model, weighting: Weighting) -> Model:
    """A model whose matrices are under a weighting. Reads what the weighting needs for that.

    Raises:
        InputError: it has second moments for none of them.
    """
    tree = model.tree
    made = replace(tree, projections=tuple(weighted(p, weighting) if p.rows else p for p in tree.projections))
    every = [p for p in made.projections if p.rows]
    if every and all(p.problem for p in every):
        raise InputError(f"{weighting.label}: {told(every[0])}")
    return replace(model, tree=made)


def opened_under(
    text: str, models: Sequence[Model], root: Path, tell: Callable[[str], None], gauge: str = RAW
) -> tuple[Offer, list[Model]] | None:
    """The weighting and gauge that a user names at the start, and the models under them; None for unmodified weights.
    `tell`: see `choose`.

    Raises:
        InputError: the weighting cannot be read, or has second moments for no projection.
    """
    offer = Offer(text, "", fixed=gauge != RAW)
    if text == NONE and not offer.fixed:
        return None
    try:
        return offer, [offer.shown(model, root, tell) for model in models]
    except InputError as error:
        option = f"--weight {printable(text)}" if text != NONE else f"--gauge {gauge}"
        raise InputError(f"{option}: {error}") from None


def _beside(model: Model) -> list[tuple[Path, str]]:
    """Files beside those of a model that hold second moments, judging by names and first bytes, and their kinds."""
    from rankscope.engine.formats.guarded import head_of  # listing and removing spectra opens no weights
    from rankscope.engine.formats.tensor import FileStamp

    stamps = model.checkpoint.stamps if model.checkpoint is not None else {}
    folders = dict.fromkeys(file.parent.absolute() for file, stamp in stamps.items() if isinstance(stamp, FileStamp))
    named: list[Path] = []
    for folder in folders:
        with suppress(OSError):
            named += (path for path in folder.iterdir() if _NAMES.search(path.name))
    return [(path, kind) for path in sorted(named)[:_MOST_FILES] if (kind := _kind_of(head_of(path, _HEAD)))]


def _kind_of(head: bytes) -> str:
    """The kind of a file by its first bytes: "imatrix", "moments", or "" for anything else."""
    from rankscope.engine.formats.foreign import is_imatrix

    if is_imatrix(head) or (head.startswith(b"GGUF") and b"imatrix" in head):
        return "imatrix"
    return "moments" if head[8:9] == b"{" and _SUMS.search(head) else ""


def _norm(model: Model, root: Path) -> Weighting:
    if model.checkpoint is None:
        return StoredWeighting(model, root, NORM)
    from rankscope.engine.derive.norm_weighting import NormWeighting

    return NormWeighting(model.checkpoint)
