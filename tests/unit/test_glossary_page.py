"""docs/GLOSSARY.md and the explorer's help have the same terms, with one for every number that is shown."""

from __future__ import annotations

from glossary_page import PAGE, page

from rankscope.engine.derive.head_matrices import GROUP_OV, NAMES, OV, QK
from rankscope.tui.data.glossary import GLOSSARY
from rankscope.tui.data.measures import MEASURES


def test_the_page_is_that_of_the_help() -> None:
    """`python tests/unit/glossary_page.py` rewrites it."""
    assert PAGE.read_text() == page()


def test_every_kind_of_head_has_its_word() -> None:
    words = ", ".join(word for word, _ in GLOSSARY).split(", ")
    assert {NAMES[QK], NAMES[OV], GROUP_OV, "offset", "head", "KV head"} <= set(words)


def test_every_number_has_its_word() -> None:
    words = ", ".join(word for word, _ in GLOSSARY).split(", ")
    short = {"k90 %": "k90", "k90/k0": "k/k0", "k90/kf": "k/kf", "k90/k*": "k/k*", "k90/raw": "k/raw"}
    short |= {
        "eff.rank": "effective rank",
        "partic.u_1": "participation",
        "entr.rank": "entropy rank",
        "stable": "stable rank",
        "sigma_1": "singular values",
        "E(k) %": "E(k)",
    }
    for measure in MEASURES:
        heading = measure.titled(0.9)
        assert short.get(heading, heading) in words
