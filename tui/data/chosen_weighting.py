"""What a user names as weighting: none, the gains of the norms, or a file; and what is then shown of a model."""

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
"""What a user writes before the name of a file whose moments are to be taken about their mean."""
_NAMES = re.compile(r"imatrix|moments", re.IGNORECASE)
_SUMS = re.compile(rb'\.(xx|x2|count)"')
_HEAD = 4096
_MOST_FILES = 16
"""Files whose first bytes are looked at."""


def choose(text: str, model: Model, root: Path, tell: Callable[[str], None]) -> Weighting | None:
    """The weighting that `none`, `norm`, the name of a file, or `centred:` and such a name stand for; None: the weights
    as they are.

    `tell` hears lines that the user should know, as that the file may be of another model.

    Raises:
        InputError: no such file, it cannot be had, or it holds no second moments.
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
    """The same name of a weighting, from whatever folder the program is started: with the whole path of a file."""
    centred = _CENTRED.fullmatch(text)
    file = centred[1] if centred else text
    if file in ("", NONE, NORM):
        return text
    with suppress(RuntimeError):  # ~nobody
        file = str(Path(file).expanduser().absolute())
    return f"{CENTRED_NAME}:{file}" if centred else file


def pooled(weighting: Weighting, model: Model, projections: Iterable[Projection]) -> Weighting:
    """What a plan of these projections is made under in the place of a weighting: where there are experts among them,
    the second moments of a file pooled by layer.

    Raises:
        InputError: they are about the mean.
    """
    if weighting.is_centred:
        raise InputError("plans need moments as they are, not about the mean")
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
    """A model with its matrices, or the `wanted` ones of them, under a weighting (None: none) and in a gauge; the model
    itself for neither. Reads what they need.

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
    """What a file says of these projections that a user has to know of ranks under it; None of no file at hand."""
    if weighting is None or isinstance(weighting, StoredWeighting) or weighting.name == NORM:
        return None
    from rankscope.engine.calibration.file_weighting import FileWeighting

    return weighting.said(projections) if isinstance(weighting, FileWeighting) else None


def weighted_by(projections: Iterable[Projection]) -> str:
    """`weighted by imatrix a.gguf (wiki.txt, 128 chunks)`, `gauge-fixed: gains folded`, for titles; "" of the weights
    as they are."""
    shown = list(projections)
    label = next(filter(None, map(weighting_label, shown)), "")
    gauge = what_is_fixed(shown)
    return "; ".join([*([f"weighted by {label}"] if label else []), *([f"gauge-fixed: {gauge}"] if gauge else [])])


def meant(
    text: str | None, model: Model, root: Path, tell: Callable[[str], None], gauge: str | None = None
) -> Callable[[Projection], bool]:
    """Whether a stored spectrum is meant by a weighting, by a name of one (`none`: all that have none) or by a file,
    whose numbers tell, pooled or not, with biases or without, and by a gauge, RAW or `fixed`; by each where it is None.
    The noise that spectra under a weighting compare with is meant as well, in the raw gauge.

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
    """The operands of the moment alone, of what is derived."""
    made = projection.derived
    assert made is not None
    balanced = by_moment(projection).derived if made.weighting and WEIGHED in made.formula else made
    return balanced.operands if balanced is not None else ()


class StoredWeighting:
    """A weighting whose source is not at hand: the moments that stored spectra were computed with, known by their
    digests alone. Spectra of it can be shown, and none computed."""

    def __init__(self, model: Model, root: Path, name: str, label: str = "") -> None:
        """`label` of what was stored under this name; "" for all of it."""
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
    """A weighting that can be chosen: `text` is what a user would name it by, `about` says what it is. `stored` is name
    and label of one whose spectra are stored and whose file is not at hand. `fixed`: in the fixed gauge. `delta`: of
    the differences of two models."""

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
        """A model in this state.

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
        """What it stands for; see `choose`."""
        return (
            choose(self.text, model, root, tell) if self.stored is None else StoredWeighting(model, root, *self.stored)
        )


def offers(session: Session, given: Mapping[str, str]) -> list[Offer]:
    """What a user can choose: none, norm, the files that were `given`, with their labels ("" where one has not been
    opened), those that lie beside the model, and what is stored of others."""
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
    """A model with its matrices under a weighting. Reads what the weighting needs for that.

    Raises:
        InputError: it has second moments of none of them.
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
    """The weighting and the gauge that a user names at the start, and the models so; None for the weights as they are.
    `tell`: see `choose`.

    Raises:
        InputError: it cannot be had, or has second moments of no projection.
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
    """Files beside those of a model that by their names and first bytes hold second moments, and their kinds."""
    from rankscope.engine.formats.guarded import head_of  # what lists and removes spectra opens no weights
    from rankscope.engine.formats.tensor import FileStamp

    stamps = model.checkpoint.stamps if model.checkpoint is not None else {}
    folders = dict.fromkeys(file.parent.absolute() for file, stamp in stamps.items() if isinstance(stamp, FileStamp))
    named: list[Path] = []
    for folder in folders:
        with suppress(OSError):
            named += (path for path in folder.iterdir() if _NAMES.search(path.name))
    return [(path, kind) for path in sorted(named)[:_MOST_FILES] if (kind := _kind_of(head_of(path, _HEAD)))]


def _kind_of(head: bytes) -> str:
    """What the first bytes of a file say that it is: "imatrix", "moments", or "" for anything else."""
    from rankscope.engine.formats.foreign import is_imatrix

    if is_imatrix(head) or (head.startswith(b"GGUF") and b"imatrix" in head):
        return "imatrix"
    return "moments" if head[8:9] == b"{" and _SUMS.search(head) else ""


def _norm(model: Model, root: Path) -> Weighting:
    if model.checkpoint is None:
        return StoredWeighting(model, root, NORM)
    from rankscope.engine.derive.norm_weighting import NormWeighting

    return NormWeighting(model.checkpoint)
