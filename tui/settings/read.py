"""The settings file: where it is, how it is read, and what to say about a mistake in it."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from rankscope.engine.errors import InputError, cure_of, printable

from ..data.contrast import Contrast
from ..data.reference_lines import ReferenceLine
from .config import AUTO, Config
from .palette import Depth, Palette
from .values import threshold

_MOST_BYTES = 1 << 20
_MOST_RANK = 10**9
"""Integers that a TOML file can hold may be too large for a float."""
_COLORS = ("sequential", "below", "above", "series")
_LINE = ("rank", "role")


class _WrongError(Exception):
    """A mistake in the file: a sentence that begins with the key."""


def config_path() -> Path:
    """The path of the settings file: $RANKSCOPE_CONFIG, else in the user's folder for settings.

    Raises:
        InputError: $RANKSCOPE_CONFIG is in a home folder that does not exist.
    """
    chosen = os.environ.get("RANKSCOPE_CONFIG")
    try:
        return Path(chosen).expanduser() if chosen else user_config_path("rankscope") / "config.toml"
    except RuntimeError:  # ~nobody
        raise InputError(
            f"RANKSCOPE_CONFIG={printable(chosen or '')} names a home folder that does not exist: name another"
        ) from None


def load(file: Path) -> Config:
    """The settings in a file; the defaults if there is none. Unknown settings are left out with a warning, as the file
    may be that of another version.

    Whether bindings, keys and the theme exist is checked later, by code that has imported Textual.
    Raises:
        InputError: the file cannot be used; the message names the file, the key, and what to write.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise _WrongError("larger than 1 MB: too large for a settings file")
        import tomllib  # only if there is a file

        table = tomllib.loads(raw.decode("utf-8-sig"))
        warnings = tuple(_sentence(file, text) for text in _take_unknown(table))
        return Config(**dict(_READERS[key](value) for key, value in table.items()), warnings=warnings)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}: {cure_of(error)}"
    except UnicodeDecodeError:
        reason = "is not written in UTF-8: save it so"
    except (ValueError, RecursionError) as error:  # tomllib's error is a ValueError
        reason = f"is not TOML: {error}: mend it, as  rankscope-tui --print-config  writes it"
    except _WrongError as error:
        reason = str(error)
    raise InputError(_sentence(file, reason))


def _sentence(file: Path, text: str) -> str:
    return f"settings file {printable(str(file), 500)}: {printable(text, 400)}"


def _take_unknown(table: dict[str, Any]) -> Iterator[str]:
    """Remove unknown settings from a file's table, and yield a sentence about each."""
    yield from _take_others(table, _READERS, "")
    colors, lines = table.get("colors"), table.get("lines")
    if isinstance(colors, dict):
        yield from _take_others(colors, _COLORS, "colors.")
    for name, line in lines.items() if isinstance(lines, dict) else ():
        if isinstance(line, dict):
            yield from _take_others(line, _LINE, f"lines.{name}.")


def _take_others(table: dict[str, Any], known: Iterable[str], prefix: str) -> Iterator[str]:
    """Remove every key except the known ones."""
    names = list(known)
    for key in [key for key in table if key not in names]:
        del table[key]
        near = get_close_matches(key, names, 1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(names)}"
        yield f"there is no setting {prefix}{key}: {hint}"


def _theme(value: Any) -> tuple[str, str]:
    return "theme", _text(value, "theme", 'write theme = "nord"')


def _color(value: Any) -> tuple[str, Depth | None]:
    names = (AUTO, *Depth)
    name = str(value)  # 256 means "256"
    if name not in names:
        raise _WrongError(f"color is {value!r}: write one of {', '.join(names)}")
    return "depth", None if name == AUTO else Depth(name)


def _threshold(value: Any) -> tuple[str, float]:
    return "threshold", _share(value, "threshold")


def _thresholds(value: Any) -> tuple[str, tuple[float, ...]]:
    if not isinstance(value, list) or not value:
        raise _WrongError(f"thresholds is {value!r}: write thresholds = [60, 80, 90]")
    return "thresholds", tuple(sorted({_share(item, "thresholds") for item in value}))


def _share(value: Any, key: str) -> float:
    """An energy threshold, written as for `-t`."""
    try:
        return threshold(str(_typed(value, (int, float, str), key, "")))
    except (ArgumentTypeError, _WrongError):
        hint = 'write 0.9, 90 or "90%", above 0 and up to 100 %'
        raise _WrongError(f"{key}: {value!r} is not a threshold: {hint}") from None


def _lines(value: Any) -> tuple[str, tuple[ReferenceLine, ...]]:
    lines = _typed(value, (dict,), "lines", "write a table [lines] with NAME = K in it")
    return "lines", tuple(_line(name, line) for name, line in lines.items())


def _line(name: str, value: Any) -> ReferenceLine:
    key, hint = f"lines.{name}", f'write {name} = 512 or {name} = {{ rank = 512, role = "query" }}'
    if not name or not name.isprintable():
        raise _WrongError(f"{key}: a line needs a name of printable characters")
    parts = value if isinstance(value, dict) else {"rank": value}
    rank = _typed(parts.get("rank"), (int, float), key, hint)
    if not 0 < rank <= _MOST_RANK:
        raise _WrongError(f"{key}: the rank {rank} is not above 0, or above {_MOST_RANK}: {hint}")
    return ReferenceLine(name, rank, _text(parts["role"], f"{key}.role", hint) if "role" in parts else "")


def _keymap(value: Any) -> tuple[str, dict[str, str]]:
    hint = 'write a table [keymap] with lines like "scan" = "S"'
    return "keymap", dict(_flat(_typed(value, (dict,), "keymap", hint), "", hint))


def _flat(table: dict[str, Any], prefix: str, hint: str) -> Iterable[tuple[str, str]]:
    """Flatten nested tables: TOML reads view.tree = "0" without quotes as a table in a table."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.", hint)
        else:
            yield f"{prefix}{key}", _text(value, f"keymap.{prefix}{key}", hint)


def _contrast(value: Any) -> tuple[str, Contrast]:
    if value not in list(Contrast):
        raise _WrongError(f"contrast is {value!r}: write one of {', '.join(Contrast)}")
    return "contrast", Contrast(value)


def _switch(key: str) -> Callable[[Any], tuple[str, bool]]:
    """The reader of a setting that is on or off."""

    def read(value: Any) -> tuple[str, bool]:
        if not isinstance(value, bool):
            raise _WrongError(f"{key} is {value!r}: write true or false")
        return key, value

    return read


def _colors(value: Any) -> tuple[str, Palette]:
    palette = Palette()
    table = _typed(value, (dict,), "colors", f"write a table [colors] with {', '.join(_COLORS)}")
    numbers: dict[str, Any] = {k: _numbers(v, k, len(getattr(palette, k))) for k, v in table.items()}
    return "palette", replace(palette, **numbers)


def _numbers(value: Any, key: str, count: int) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= 255 for n in value)
    ):
        raise _WrongError(f"colors.{key} is {value!r}: write {count} colour numbers from 0 to 255")
    return tuple(value)


def _text(value: Any, key: str, hint: str) -> str:
    text: str = _typed(value, (str,), key, hint)
    if not text or not text.isprintable():
        raise _WrongError(f"{key} is {text!r}: {hint}")
    return text


def _typed(value: Any, kinds: tuple[type, ...], key: str, hint: str) -> Any:
    """The value if it has one of these types; TOML's true does not count as a number."""
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise _WrongError(f"{key} is {value!r}: {hint}")
    return value


_READERS: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "theme": _theme,
    "color": _color,
    "threshold": _threshold,
    "thresholds": _thresholds,
    "contrast": _contrast,
    "suspend": _switch("suspend"),
    "bell": _switch("bell"),
    "mouse": _switch("mouse"),
    "lines": _lines,
    "keymap": _keymap,
    "colors": _colors,
}
"""Key of the file -> function that returns the field of Config and its value."""
