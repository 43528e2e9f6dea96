"""ASCII instead of Unicode: same width, shades and curves still told apart, letters kept."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from textual._border import BORDER_CHARS

from rankscope.tui.settings.encoding import plain, shows_unicode
from rankscope.tui.settings.palette import LEVELS

BRAILLE = "".join(map(chr, range(0x2800, 0x2900)))
FRAMES = "".join(map(chr, range(0x2500, 0x25A0)))


def test_frames_curves_and_signs_are_ascii_of_the_same_width() -> None:
    borders = "".join("".join(row) for rows in BORDER_CHARS.values() for row in rows)
    for text in (BRAILLE, FRAMES, borders, "\u2026\u2013\u2014\u2192\u2191\u25bc\u25b6\u2713\u2714\u2022"):
        for encoding in ("ascii", "latin-1", "euc_jp"):
            shown = plain(text, encoding)
            assert shown.isascii()
            assert len(shown) == len(text)
            assert "?" not in shown


def test_shades_stay_eight_and_curves_keep_their_height() -> None:
    assert len(set(plain(LEVELS, "ascii"))) == len(LEVELS)
    high, middle, low = (plain(char, "ascii") for char in "\u2809\u2812\u28c0")
    assert (high, middle, low) == ("'", "-", ".")
    assert plain("\u2800\u28ff", "ascii") == " #"


def test_letters_are_kept_where_the_encoding_has_them() -> None:
    name = "Schl\xfcssel \u6f22\u5b57 \u2502"
    assert plain(name, "latin-1") == "Schl\xfcssel ???? |"
    assert plain(name, "euc_jp") == "Schl\xfcssel \u6f22\u5b57 |"
    assert plain(name, "ascii") == "Schl?ssel ???? |"
    assert len({cell_len(plain(name, encoding)) for encoding in ("latin-1", "euc_jp", "ascii")}) == 1


@pytest.mark.parametrize(
    ("variables", "unicode"),
    [
        ({"LANG": "de_DE.UTF-8"}, True),
        ({"LC_ALL": "de_DE@euro"}, False),
        ({"LC_ALL": "ja_JP.eucJP"}, False),
        ({"LANG": "C"}, False),
        ({"LANG": ""}, True),  # a container
        ({"LANG": "de_DE.UTF-8", "PYTHONIOENCODING": "ascii"}, False),
        ({"LANG": "de_DE.UTF-8", "PYTHONIOENCODING": ":backslashreplace"}, True),
        ({"LANG": "C", "PYTHONIOENCODING": "UTF8"}, True),
    ],
)
def test_which_terminals_show_unicode(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], unicode: bool
) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "PYTHONIOENCODING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert shows_unicode() is unicode
