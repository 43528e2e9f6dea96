"""What a user names as weighting: none, the gains of the norms, or a file; and what is then shown of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.engine.derive.weighting import is_weighted
from rankscope.engine.errors import WeightsError
from rankscope.engine.spectrum import Projection

from .session import Model

if TYPE_CHECKING:
    from rankscope.engine.moment import Moment, Weighting

NONE, NORM = "none", "norm"


def choose(text: str, model: Model, root: Path, tell: Callable[[str], None]) -> Weighting | None:
    """The weighting that `none`, `norm` or the name of a file stands for; None: the weights as they are.

    `tell` hears lines that the user should know, as that the file may be of another model.

    Raises:
        InputError: no such file, it cannot be had, or it holds no second moments.
    """
    if text == NONE:
        return None
    if text == NORM:
        return _norm(model, root)
    from rankscope.engine.calibration.weighting import open_weighting

    opened = open_weighting(text, model.name, model.checkpoint.config if model.checkpoint else {})
    for line in opened.warnings:
        tell(line)
    return opened


def weighted_by(projections: Iterable[Projection]) -> str:
    """`weighted by imatrix a.gguf (wiki.txt, 128 chunks)`, for titles; "" of the weights as they are."""
    found = (p.derived.label for p in projections if p.derived is not None and is_weighted(p))
    label = next(found, "")
    return label and f"weighted by {label}"


def meant(text: str, model: Model, root: Path, tell: Callable[[str], None]) -> Callable[[Projection], bool]:
    """Whether a stored spectrum is meant by a weighting, by a name of one (`none`: all that have none) or by a file,
    whose numbers tell. The noise that such spectra compare with is meant as well.

    Raises:
        InputError: as `choose`.
    """
    if text == NONE:
        return lambda p: p.derived is None or not p.derived.weighting
    if text in (NORM, "imatrix", "moments"):
        return lambda p: p.derived is not None and p.derived.weighting == text
    weighting = choose(text, model, root, tell)
    assert weighting is not None
    taken = set()
    for p in model.tree.projections:
        with suppress(WeightsError):
            taken.add(weighting.moment(p).operands)
    return lambda p: p.derived is not None and p.derived.operands in taken


class StoredNorms:
    """The weighting `norm` of a model whose weights are gone: the moments that its stored spectra were computed with,
    known by their digests alone."""

    name = NORM
    label = "norm gains"

    def __init__(self, model: Model, root: Path) -> None:
        from rankscope.store.spectra import SpectraStore

        stored = SpectraStore(root, model.folder).stored()
        projections = map(stored.projection, sorted(stored.derived(), key=stored.computed_at))
        self._made = {
            p.parents[0].key: made
            for p in projections
            if is_weighted(p) and (made := p.derived) and made.weighting == NORM
        }

    def moment(self, projection: Projection) -> Moment:
        """See Weighting."""
        from rankscope.engine.moment import Moment

        made = self._made.get(projection.key)
        if made is None:
            raise WeightsError("it is not stored under the gains of the norms, and its weights cannot be opened")
        return Moment("layer_norm" if len(made.operands) > 1 else "diagonal", projection.cols, made.operands)


def _norm(model: Model, root: Path) -> Weighting:
    if model.checkpoint is None:
        return StoredNorms(model, root)
    from rankscope.engine.derive.norm_weighting import NormWeighting

    return NormWeighting(model.checkpoint)
