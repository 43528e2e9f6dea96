"""The table of formulas: for each name the function that makes a derived matrix of those of its parents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..spectrum import FACTORS, FACTORS_ALPHA, FLIPPED, Projection
from ..weights import Weights
from .balance import balance, centre
from .difference import DELTA
from .factor_products import multiply_factors
from .gauge import BALANCED, CENTRED, NOTHING
from .head_matrices import HEAD, OV, QK, ROWS
from .head_products import head_rows, multiply_ov, multiply_qk
from .latent import LATENT, PRODUCTS, ways
from .signs import flip
from .stack import multiply_latent, stack_latent
from .subtract import subtract
from .weigh import NotedMatrix, Weighed, noise, weigh
from .weighting import NOISE, WEIGHED

Formula: TypeAlias = "Callable[[Projection, Sequence[Weights]], Weights | Weighed | NotedMatrix]"
"""Takes the derived projection and the matrices of its parents, each of its parent's shape (rows, cols); if `derived`
names no parents, the one matrix as it is stored. Returns a new matrix of any float type, on any device.

Raises:
    WeightsError: the matrix cannot be made; the user reads the message.
"""

_FORMS = ("diagonal", "full", "layer_norm")
_SCALED = [f"_{degree}_{fold}" for degree in (1, 2) for fold in (NOTHING, "diagonal", "layer_norm")]
_HEADS: dict[str, Formula] = {ROWS: head_rows, QK: multiply_qk, OV: multiply_ov}
_STATES = ("", *(f"_{WEIGHED}{form}" for form in _FORMS))

FORMULAS: dict[str, Formula] = {
    FLIPPED.formula: flip,
    **{WEIGHED + form: weigh for form in _FORMS},
    **{NOISE + form: noise for form in _FORMS},
    CENTRED: centre,
    FACTORS: multiply_factors,
    FACTORS_ALPHA: multiply_factors,
    **{f"{BALANCED}{role}{scaled}": balance for role in ("up", "down") for scaled in _SCALED},
    **{f"{BALANCED}up{scaled}_{WEIGHED}{form}": balance for scaled in _SCALED for form in _FORMS},
    **{f"{LATENT}{chosen.stem}{state}": stack_latent for chosen in ways() for state in _STATES},
    **{f"{product}{state}": multiply_latent for product in PRODUCTS.values() for state in _STATES},
    **{f"{DELTA}{state}": subtract for state in _STATES},
    **{f"{HEAD}{kind}{state}": made for kind, made in _HEADS.items() for state in (*_STATES, f"_{CENTRED}")},
}
