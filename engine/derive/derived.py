"""Projections whose matrix is derived from others: their names and keys. Imports neither torch nor numpy."""

from __future__ import annotations

from ..spectrum import Projection, derive

__all__ = ["AS_FACTORS", "derive", "is_state"]

AS_FACTORS = "it is stored as two factors: only their product as it is can be computed"
"""Why a product (Projection.is_product) has no other state."""


def is_state(projection: Projection) -> bool:
    """Return whether it is a matrix of the checkpoint in another state: under a weighting, or in the fixed gauge."""
    return projection.derived is not None and not projection.derived.is_further
