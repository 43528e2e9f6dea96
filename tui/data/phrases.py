"""Texts that are needed for stored models too, without opening one."""

from __future__ import annotations

UNREAD_ADVICE = "Its owner can mend that, or name another store with --store DIR"


def byte_size(count: int) -> str:
    """`85.2 MB`, decimal units."""
    unit, scale = _unit(count)
    return f"{count / scale:.1f} {unit}" if scale > 1 else f"{count} B"


def share(count: int, total: int) -> str:
    """`1.2/3.2 GB`, in the unit of the total."""
    unit, scale = _unit(total)
    return f"{count / scale:.1f}/{total / scale:.1f} {unit}" if scale > 1 else f"{count}/{total} B"


def _unit(count: int) -> tuple[str, float]:
    units = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    return next(((unit, scale) for unit, scale in units if count >= scale), ("B", 1))
