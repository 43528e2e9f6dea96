"""`rankscope ls` and `rankscope rm`: the models in the store, listed and removed without opening their weights."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from rich.text import Text

from rankscope.engine.errors import InputError, printable
from rankscope.store.models import StoredModel, find_model, remove_model, remove_spectra, stored_models

from ..data.phrases import UNREAD_ADVICE, byte_size
from ..drawing.console import add_columns, make_console, plain_table, say


def ls(args: Namespace, root: Path) -> int:
    """Print the models that have spectra."""
    if args.json:
        for found in stored_models(root):
            made = {"model": found.name, "folder": found.folder, "spectra": found.spectra, "bytes": found.size}
            damaged = [{"file": str(path), "reason": sentence} for path, sentence in found.damaged]
            print(
                json.dumps(
                    made
                    | {
                        "computed_at": found.computed_at,
                        "damaged": damaged,
                        "weighted": found.weighted,
                        "fixed": found.fixed,
                    }
                )
            )
        return 0
    console = make_console()
    table = plain_table(console)
    add_columns(table, "model", "spectra", "size", "last computed", right=("spectra", "size"))
    models = stored_models(root)
    for found in models:
        if found.unread:
            continue  # named below
        when = found.computed_at[:16].replace("T", " ")
        counts = [str(found.spectra), *(f"{count} {printable(name)}" for name, count in found.weighted.items())]
        counts += [f"{found.fixed} fixed"] if found.fixed else []
        table.add_row(Text(printable(found.name)), Text(" + ".join(counts)), byte_size(found.size), when)
    if table.row_count:
        console.print(table)
    elif not models:
        say(f"nothing is stored in {root} yet: try  rankscope scan demo")
    for path, sentence in (damaged for found in models for damaged in found.damaged):
        say(f"{path}: {sentence}")
    return 0


def rm(args: Namespace, root: Path) -> int:
    """Remove all spectra of a model, or only those under one weighting or in one gauge."""
    if args.weight or args.gauge:
        return _remove_some(args.model, args.weight, args.gauge, root)
    found = _find(args.model, root)
    if found is None:
        raise InputError(f"nothing is stored of {printable(args.model)}: see  rankscope ls")
    if found.unread:
        raise InputError(f"{found.unread} {UNREAD_ADVICE}")
    try:
        removed = remove_model(root, found.folder)
    except ValueError as error:
        raise InputError(f"{error}: remove it by hand") from None
    files = ((removed.unread, "unreadable"), (removed.damaged, "damaged"), (removed.temporary, "half-written"))
    others = "".join(f", {count} {what} file{'s' * (count > 1)}" for count, what in files if count)
    say(f"removed {removed.spectra} spectra of {found.name}{others}")
    return 0


def _remove_some(name: str, weight: str | None, gauge: str | None, root: Path) -> int:
    """Remove those under a weighting and in a gauge; None means any."""
    from rankscope.engine.checkpoint.hub import Access

    from ..data.chosen_weighting import meant
    from ..data.model import open_model

    model = open_model(name, root, Access.CACHE)  # its config says what a moments file's numbers mean
    count = remove_spectra(root, model.folder, meant(weight, model, root, say, gauge))
    if not count:
        under = [f"under {printable(weight)}"] if weight else []
        where = " ".join([*under, *([f"in the gauge {gauge}"] if gauge else [])])
        raise InputError(f"nothing is stored of {printable(name)} {where}: see  rankscope ls")
    what = ", ".join([*([printable(weight)] if weight else []), *([f"gauge {gauge}"] if gauge else [])])
    say(f"removed {count} spectra of {model.name}: {what}")
    return 0


def _find(model: str, root: Path) -> StoredModel | None:
    """The stored model with this name, path or folder in the store."""
    names = {model}
    if model == "demo":
        from rankscope.engine.checkpoint.open import demo_file

        names = {str(demo_file())}
    elif "@" in model or ":" in model:  # a revision, hf://, a URL
        from rankscope.engine.checkpoint.urls import stored_name

        names.add(stored_name(model))
    return find_model(root, names)
