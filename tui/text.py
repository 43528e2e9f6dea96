"""Numbers as words, the same in every room of the interface."""

from __future__ import annotations

from rankscope.engine.events import Progress


def percent(threshold: float) -> str:
    """0.9 -> "90", 0.995 -> "99.5"."""
    return f"{threshold * 100:.10g}"


def describe(progress: Progress) -> str:
    """`143/210  31/s  ETA 2 s  0 failed`."""
    rate = float(f"{progress.rate:.3g}")
    parts = [f"{progress.done}/{progress.total}", f"{rate:g}/s"]
    if progress.busy and progress.eta is not None:
        parts.append(f"ETA {duration(progress.eta)}")
    return "  ".join([*parts, f"{progress.failed} failed"])


def duration(seconds: float) -> str:
    """`2 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def byte_size(count: int) -> str:
    """`85.2 MB`, decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
