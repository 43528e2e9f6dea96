"""What a matrix made of others is called and known by. Imports neither torch nor numpy."""

from __future__ import annotations

from ..spectrum import Projection, derive

__all__ = ["AS_FACTORS", "derive", "is_state"]

AS_FACTORS = "it is stored as two factors: only their product as it is can be computed"
"""Why there is no other state of a product (Projection.is_product)."""


def is_state(projection: Projection) -> bool:
    """Whether it is a matrix of the checkpoint in another state: under a weighting, in the fixed gauge."""
    return projection.derived is not None and not projection.derived.is_further
