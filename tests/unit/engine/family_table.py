"""docs/FAMILIES.md, made of the catalogue and the families under test: `python tests/unit/engine/family_table.py`."""

from __future__ import annotations

from pathlib import Path

from family_builds import SPECS
from family_norms import norms_of
from family_published import PUBLISHED
from family_specs import FAMILIES

from rankscope.engine.catalogue.families import FUSED, KNOWN_FAMILIES
from rankscope.engine.catalogue.layouts import NAMES, Layout, Rule

PAGE = Path(__file__).parents[3] / "docs" / "FAMILIES.md"
_HEAD = """\
# Model families

Generated from `engine/catalogue/families.py` and the tests: `python tests/unit/engine/family_table.py` rewrites it.

**Tested.** M: the slices have the singular values (LAPACK, float64) of the rows that the running module of transformers
uses as queries, keys, values, gates ... (`tests/unit/engine/test_families_traced.py`, under the names on the Hub and
those in memory), or of its own matrices (`test_families.py`). M, names: as M, but the model does not run on one token:
the test covers addresses, blocks and which matrices are not projections. S: against the split in the published code
(`test_families_published.py`). The parts of one split in a state-space layer, a short convolution or linear attention
are compared as a set: that each is one of them, not which. mllama and llama4 are run without vision.

**Norms.** Whether it is known which norm feeds each projection (`engine/catalogue/norm_families.py`). M: folding its
gain and bias into the matrix gives the output of the running module, for every projection that runs. S: as in the
published modules.

A family without a split of its own has names that mean the same in every family; the second table has the tensors that
are fused in every family that has them. A model of another family is opened too: matrices with known names get their
roles, and every other matrix is computed under its own name. A fused tensor that contradicts its layer's shapes or
config.json is not split, and a line says what was expected.

"""


def page() -> str:
    """The page, with a row for every family that the catalogue knows."""
    own = [
        f"| `{family}` | {_own(family)} | {_tested(family)} | {norms_of(family)} |" for family in sorted(KNOWN_FAMILIES)
    ]
    shared = [f"| `{_path(rule)}` | {rule.block} | {_split(rule)} |" for rule in FUSED if not rule.models]
    return "\n".join(
        [
            f"{_HEAD}## Families\n\n| model_type | split of its own | tested | norms |\n|---|---|---|---|",
            *own,
            "\n## Names that are split in every family\n\n| name in the layer | block | split |\n|---|---|---|",
            *dict.fromkeys(shared),
            "\n## Splits\n\nAn axis (0: rows, 1: columns) has this many equal groups of these parts, in this order.\n",
            "| name | axis | groups | parts |\n|---|---|---|---|",
            *(f"| {name} | {item.axis} | {item.groups} | {_parts(item)} |" for name, item in NAMES.items()),
            "",
        ]
    )


def _parts(layout: Layout) -> str:
    return ", ".join(f"{role} {width}" if isinstance(width, str) else role for role, width in layout.parts)


def _own(family: str) -> str:
    """What the family's own rules split or name."""
    rules = [rule for rule in FUSED if any(model.partition("+")[0] == family for model in rule.models)]
    flags = {rule: next(m.partition("+")[2] for m in rule.models if m.partition("+")[0] == family) for rule in rules}
    return "; ".join(f"`{_path(r)}` {_split(r)}{f' ({flags[r]})' if flags[r] else ''}" for r in rules)


def _split(rule: Rule) -> str:
    names = {layout: name for name, layout in NAMES.items()}
    words = [" or ".join(names[layout] for layout in rule.layouts) or rule.role]
    stacks = {
        "planes": "of each expert in a 3-D stack",
        "heads": "the heads of a 3-D stack below one another",
        "turned heads": "the heads of a 3-D stack, each transposed, below one another",
        "rows": f"in {rule.count} blocks of rows",
        "flat": "3-D, flattened",
    }
    words += [stacks[rule.stack]] if rule.stack else []
    words += (
        [
            {
                "doubled": "where twice as wide as the MLP",
                "gated": "where twice as wide as the output",
                "latent gated": "as many rows as latent queries with an output gate need",
            }[rule.when]
        ]
        if rule.when
        else []
    )
    if rule.proven:
        words += ["where heads and output prove it"] if rule.layouts else ["whole: no type says its order"]
    return ", ".join(filter(None, words))


def _path(rule: Rule) -> str:
    return (
        rule.path.replace("(?<!cross)", "").replace("(?:", "(").replace("\\", "").replace("^", "").replace("|", "\\|")
    )


def _tested(family: str) -> str:
    traced = {spec.model_type for spec in SPECS if "*" not in spec.untraced} | {item.model_type for item in FAMILIES}
    if family in traced:
        unseen = sorted({role for spec in SPECS if spec.model_type == family for role in spec.untraced})
        return f"M, but only by name: {', '.join(unseen)}" if unseen else "M"
    if family in {spec.model_type for spec in SPECS}:
        return "M, names"
    assert family in {item.model_type for item in PUBLISHED} | {"openelm", "lara_mini"}
    return "S"


if __name__ == "__main__":
    PAGE.write_text(page())
