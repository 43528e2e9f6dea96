"""`rankscope-tui` and `rankscope`: the command lines. Nothing heavier than argparse is imported before use."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..settings.values import positive, reference_line, threshold, thresholds

if TYPE_CHECKING:
    pass

PROG = "rankscope"
VIEWS = ("heatmap", "spectrum", "energy", "layers", "table", "compare", "facets")
PICTURES = ("heatmap", "spectrum", "energy", "layers", "facets")
MODEL_HELP = "org/name[@revision] on the Hub, a folder, a file (.safetensors, .gguf, .bin, .pt), a URL of one, or demo"


class Parser(argparse.ArgumentParser):
    """Wrong use is one line: argparse would print the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        from rankscope.engine.errors import printable

        self.exit(2, f"{self.prog}: {printable(message, 500)}; see  {self.prog} --help\n")


class Flat(argparse.Action):
    """Adds to the list of an option lists of values."""

    def __call__(self, _: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, __: Any = None) -> None:
        found = [*(getattr(namespace, self.dest) or []), *(value for part in values for value in part)]
        setattr(namespace, self.dest, found)


def device(text: str) -> str:
    """A device specification of the right form."""
    from rankscope.engine.compute.devices import check_spec
    from rankscope.engine.errors import InputError

    try:
        return check_spec(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--device is ")) from None


def main_tui(argv: Sequence[str] | None = None) -> int:
    """The explorer."""
    parser = Parser("rankscope-tui", description="Explore the singular-value spectra of a model.")
    parser.add_argument("model", nargs="?", help=f"{MODEL_HELP}; none: choose among stored and cached models")
    _add_store(parser)
    _add_computing(parser)
    parser.add_argument("--against", metavar="MODEL", help="a second model: the same projections of both, and B/A")
    parser.add_argument("-t", "--threshold", type=threshold, help="energy threshold to start with (90%%)")
    parser.add_argument(
        "--line",
        type=reference_line,
        action="append",
        metavar="NAME=K[@ROLE]",
        help="one more rank drawn across the layers view; may be repeated",
    )
    parser.add_argument("--color", choices=("auto", "256", "16", "mono"), help="how many colours (auto)")
    parser.add_argument("--theme", metavar="NAME", help="nord, textual-light, ansi-dark ...; a wrong name lists all")
    parser.add_argument("--print-config", action="store_true", help="print all settings as a settings file")
    _add_version(parser)
    args = parser.parse_args(argv)
    return _guarded(parser.prog, _run_tui, args)


def main(argv: Sequence[str] | None = None) -> int:
    """The same engine without a screen."""
    args = _parser().parse_args(argv)
    return _guarded(PROG, _run_headless, args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(PROG, description="Singular-value spectra and threshold ranks of model weights.")
    _add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, model: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if model:
            sub.add_argument("model", help=MODEL_HELP)
        _add_store(sub)
        return sub

    scan = command("scan", "compute what is not stored yet, save it, print the table")
    _add_filter(scan)
    _add_computing(scan)
    _add_thresholds(scan)
    scan.add_argument("--null", choices=("flip",), help="also compute the weights under random signs, for k/kf")
    scan.add_argument("--recompute", action="store_true", help="compute again what is stored")
    scan.add_argument("--json", action="store_true", help="one JSON object a line and projection, once it is saved")
    show = command("show", "print a view of what is stored: by default the threshold ranks, layers x roles")
    _add_view(show, VIEWS)
    _add_show(show)
    plot = command("plot", "save a view of what is stored as a picture")
    _add_view(plot, PICTURES)
    plot.add_argument("-o", "--output", required=True, metavar="FILE", help="FILE.png, .pdf or .svg")
    plot.add_argument("--normalised", action="store_true", help="spectrum, facets: sigma over sigma_1")
    tree = command("tree", "list layers and projections, from the files' headers only")
    tree.add_argument("--json", action="store_true", help="one JSON object a line and tensor or projection")
    export = command("export", "write what is stored to one file")
    export.add_argument("-o", "--output", required=True, metavar="FILE", help="FILE.h5, .npz, .csv or .json")
    _add_filter(export)
    ls = command("ls", "list the models that have stored spectra", model=False)
    ls.add_argument("--json", action="store_true", help="one JSON object a line and model")
    command("rm", "remove the stored spectra of a model")
    command("doctor", "say what devices, versions, store and cache are seen", model=False)
    return parser


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", metavar="DIR", help="where spectra are kept (else RANKSCOPE_STORE, else the data folder)"
    )


def _add_computing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:0,cuda:1")
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (else OMP_NUM_THREADS, else the cores, at most 8)"
    )
    parser.add_argument(
        "--download", action="store_true", help="take the whole model into the Hub cache first, not just what is needed"
    )
    parser.add_argument("--experts", type=positive, metavar="N", help="compute N experts of each layer, evenly spread")


def _add_thresholds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t",
        "--threshold",
        type=thresholds,
        nargs="+",
        action=Flat,
        metavar="T",
        help="energy thresholds: 0.9, 90 or 90%%, several as 60,80 or 60 80 (60 80 90)",
    )


def _add_view(parser: argparse.ArgumentParser, views: Sequence[str]) -> None:
    """What `show` and `plot` have in common."""
    parser.add_argument("--view", choices=views, default="heatmap", help="what to show (heatmap)")
    _add_filter(parser)
    _add_thresholds(parser)
    parser.add_argument("--unit", metavar="NAME", help="heatmap: k, percent, k/k0, k/kf, k/k*, effective_rank ... (k)")
    parser.add_argument("--against", metavar="MODEL", help="a second model, B: the same projections of both")
    parser.add_argument("--side", choices=("A", "B", "B/A"), help="with --against: numbers of which (B/A)")
    parser.add_argument(
        "--line", type=reference_line, action="append", metavar="NAME=K[@ROLE]", help="layers: a rank to draw across"
    )


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=positive, metavar="K", help="table, spectrum: also what keeping K values means")
    parser.add_argument("--sort", metavar="COLUMN", help="table: by k90, k/k0, stable_rank ..., largest first")
    parser.add_argument("--csv", action="store_true", help="heatmap, table, compare, layers: as CSV")
    parser.add_argument(
        "--color", choices=("auto", "256", "16", "mono"), default="auto", help="how many colours (auto)"
    )


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filter", metavar="GLOB", help="addresses: '*.attention.key', 'layers.3', 'mlp'")


def _add_version(parser: argparse.ArgumentParser) -> None:
    class Version(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            from importlib.metadata import version

            print(parser.prog, version("rankscope-tui"))  # parser.exit would write to stderr
            parser.exit()

    parser.add_argument("--version", action=Version, nargs=0, help="print the version")


def _store_root(args: argparse.Namespace) -> Path:
    from rankscope.engine.errors import InputError, printable

    try:
        root = Path(args.store).expanduser() if args.store else _default_root()
    except RuntimeError:  # ~nobody
        raise InputError(f"the store {printable(args.store or '')} names a home folder that does not exist") from None
    if root.exists() and not root.is_dir():
        raise InputError(f"the store {printable(str(root))} is not a folder: name one with --store DIR")
    return root


def _default_root() -> Path:
    from rankscope.store.folders import default_root

    return default_root()


def _run_tui(args: argparse.Namespace) -> int:
    if args.print_config:
        from .launch import print_config

        return print_config(args)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("rankscope-tui needs a terminal; without one use  rankscope scan | show | export", file=sys.stderr)
        return 2
    from .launch import run_app

    return run_app(args, _store_root(args))


def _run_headless(args: argparse.Namespace) -> int:
    from . import commands as headless
    from . import show as showing

    module = showing if args.command in ("show", "plot") else headless
    command: Callable[[argparse.Namespace, Path], int] = getattr(module, args.command)
    return command(args, _store_root(args))


def _guarded(prog: str, run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Bad input is one line and exit code 2; a closed pipe and ctrl+c are no errors of ours."""
    # numpy is only used for light work here: its BLAS need not start a thread per core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from rankscope.engine.errors import InputError, printable

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return run(args)
    except InputError as error:
        print(f"{prog}: {printable(str(error), 1000)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _leave(0)
    except OSError as error:  # a store that cannot be read, a full disk
        at = f"{error.filename}: " if error.filename else ""
        print(f"{prog}: {printable(f'{at}{error.strerror or error}', 1000)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: stopped; what was saved is kept", file=sys.stderr)
        _leave(130)


def _leave(code: int) -> NoReturn:
    """End now. Everything is saved; a thread inside a BLAS call would hold up or crash an orderly exit."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
