"""What a matrix made of others is called and known by. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import replace

from ..spectrum import Derived, Projection, digest


def is_state(projection: Projection) -> bool:
    """Whether it is a matrix of the checkpoint in another state: under a weighting, in the fixed gauge."""
    return projection.derived is not None and not projection.derived.is_further


def derive(projection: Projection, made: Derived) -> Projection:
    """The matrix that `made` describes, named and placed like `projection`: address, layer, role, shape, source.

    Its key is the digest of its parents' keys, of formula and version, and of the digests of its operands: it changes
    with everything that the matrix depends on. With parents it is not transposed (they are turned before a formula
    sees them), and has the problem of the first that has one.
    """
    parents = made.parents or (projection,)
    parts = (*(p.key for p in parents), made.formula, made.version, *(operand.digest for operand in made.operands))
    changed = replace(projection, derived=made, key=digest(*parts))
    if not made.parents:
        return changed
    problem = next((f"{p.label}: {p.problem}" for p in parents if p.problem is not None), None)
    return replace(changed, transposed=False, problem=problem)
