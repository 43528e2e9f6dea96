"""Terminals whose encoding is not UTF-8: how to recognise them, and ASCII for frames, curves, arrows and dots.

This is decided only here. Drawing code uses Unicode throughout; this is the last step before a terminal's bytes.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from functools import lru_cache
from unicodedata import east_asian_width

_PAIRS = {
    "\u2026\u2022\u00b7\u25cf\u2b24\u25cb\u2b58": "...**oo",  # ellipsis, dots
    "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u00a0": "------- ",  # dashes
    "\u2018\u2019\u201c\u201d": "''\"\"",
    "\u2190\u2191\u2192\u2193\u25c0\u25b2\u25b6\u25bc\u25c4\u25b4\u25ba\u25be\u25b8": "<^>v<^>v<^>v>",  # arrows
    "\u2713\u2714\u2717\u2718\u00d7": "vvxxx",  # check marks
    "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588": ".:-=+*%#",  # bars of rising height
    "\u2260": "/",  # two shapes
    "\u2580\u2594\u2591\u2592\u2593": "''.:#",
    "\u2550\u254c\u254d\u2504\u2505\u2508\u2509": "=~~~~::",  # double and broken lines
}
_GLYPHS = {glyph: sign for glyphs, signs in _PAIRS.items() for glyph, sign in zip(glyphs, signs, strict=True)}
_ACROSS = "\u2500\u2501\u2574\u2576\u2578\u257a\u257c\u257e"
_FRAMES, _BLOCKS, _BRAILLE = range(0x2500, 0x2580), range(0x2580, 0x25A0), range(0x2800, 0x2900)
_DOWN = "\u2502\u2503\u2506\u2507\u250a\u250b\u254e\u254f\u2551\u2575\u2577\u2579\u257b\u257d\u257f"
_DOT_ROWS = (0b00001001, 0b00010010, 0b00100100, 0b11000000)
"""The bits of the two dots in each row of a braille character, from the top."""

_HANDLERS: dict[str, str] = {}
"""Error handlers given to streams -> the encoding that the stream had."""


def shows_unicode() -> bool:
    """Whether the terminal shows UTF-8: PYTHONIOENCODING says so, or both the locale and Python do.

    If no locale is set, as in most containers, only Python's answer counts, as its terminal is nearly always UTF-8.
    """
    chosen = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    if chosen:
        return _is_utf8(chosen)
    # None is the encoding of Rich's replacement of stdout.
    return (is_utf8_locale() or not _locale()) and _is_utf8(sys.stdout.encoding or "utf-8")


def is_utf8_locale() -> bool:
    """Whether the locale says that the terminal shows UTF-8."""
    return "utf" in _locale().lower()


def _locale() -> str:
    """The locale for characters that the user has set, "" for none."""
    ctype, lang = os.environ.get("LC_CTYPE", ""), os.environ.get("LANG", "")
    if ctype in ("C.UTF-8", "C.utf8") and lang in ("", "C", "POSIX"):
        ctype = ""  # set by Python if the user's locale is C (PEP 538)
    return os.environ.get("LC_ALL") or ctype or lang


def set_up_streams() -> None:
    """Let stdout and stderr write any text: outside UTF-8 our glyphs become ASCII, characters that the encoding has
    stay, and the rest becomes \\u escapes."""
    is_unicode = shows_unicode()
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if is_unicode:
            stream.reconfigure(errors="backslashreplace")
        elif stream.errors not in _HANDLERS:
            stream.reconfigure(encoding="ascii", errors=_replacing(stream.encoding))


def letters() -> str:
    """The encoding for letters on a terminal outside UTF-8. If Python writes UTF-8 there, it does not know the locale,
    and only ASCII is safe."""
    encoding = _HANDLERS.get(sys.stdout.errors or "", sys.stdout.encoding)
    return "ascii" if _is_utf8(encoding) else encoding


@lru_cache(4096)
def plain(text: str, encoding: str) -> str:
    """The text at the same width in characters of this encoding, without frames, curves and the like."""
    return "".join(char if char.isascii() else _glyph(char) or _encodable(char, encoding) for char in text)


def _encodable(char: str, encoding: str) -> str:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return "??" if east_asian_width(char) in "WF" else "?"
    return char


@lru_cache(4096)
def _glyph(char: str) -> str:
    """The ASCII character for one that only draws, "" for letters and everything else."""
    code = ord(char)
    if char in _GLYPHS:
        return _GLYPHS[char]
    if code in _FRAMES:
        return "-" if char in _ACROSS else "|" if char in _DOWN else "+"
    if code in _BLOCKS:
        return "|"
    return _braille_as_ascii(code - _BRAILLE.start) if code in _BRAILLE else ""


def _braille_as_ascii(bits: int) -> str:
    """The ASCII character for a braille character, by how many dots it has, and where."""
    rows = [number for number, row in enumerate(_DOT_ROWS) for _ in range((bits & row).bit_count())]
    if len(rows) > 4:
        return "*" if len(rows) < 7 else "#"
    if not rows:
        return " "
    if max(rows) - min(rows) > 1:
        return ":"
    middle = sum(rows) / len(rows)
    return "'" if middle < 1 else "-" if middle < 2.5 else "."


def _replacing(encoding: str) -> str:
    """The name of an error handler for the ASCII codec that knows glyphs and a stream's encoding."""
    name = f"rankscope-{encoding}"
    _HANDLERS[name] = encoding

    def replace(error: UnicodeError) -> tuple[str | bytes, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        char = error.object[error.start]
        own = _glyph(char) or char
        return own.encode(encoding, errors="backslashreplace"), error.start + 1

    codecs.register_error(name, replace)
    return name


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith("utf-8")
