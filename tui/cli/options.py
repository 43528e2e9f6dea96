"""Options that several commands share, a function for each. Imports only argparse and the table of views."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..data.views import DEFAULT
from ..settings.values import kept_ranks, positive, reference_line, thresholds, whole
from .parser import Flat

DEPTH, ADDRESS = "depth", "address"
DELTA = "delta"
"""The name of --side that shows the difference of two models."""

HEAD_KINDS = ("query", "key", "value", "qk", "ov", "kv_ov")
"""The kinds of engine/derive/head_matrices.py, repeated as importing it takes long."""


def device(text: str) -> str:
    """Parse a device specification, as an argparse type."""
    from rankscope.engine.compute.devices import check_spec
    from rankscope.engine.errors import InputError

    try:
        return check_spec(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--device ")) from None


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", metavar="DIR", help="where spectra are kept (else RANKSCOPE_STORE, else the data folder)"
    )


def add_links(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="also read files of a model's folder that are links to files outside it",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    several = "auto (a scan takes several GPUs only where starting them pays), cpu, cuda (all GPUs) or cuda:0,cuda:1"
    parser.add_argument("--device", type=device, default="auto", help=several)
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (else OMP_NUM_THREADS, else the cores, at most 8)"
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="download the whole model into the Hub cache first, not just what is needed",
    )


def add_computing(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="compute by the workers of a Dask scheduler: tcp://host:8786, tls://host:8786, or its file",
    )
    parser.add_argument("--experts", type=positive, metavar="N", help="compute N experts of each layer, evenly spread")


def add_pair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pair",
        choices=(DEPTH, ADDRESS),
        help="with --against, where one has more layers: pair layers of equal depth, or equal addresses (depth)",
    )


def add_thresholds(parser: argparse.ArgumentParser, default: str = "60 80 90") -> None:
    parser.add_argument(
        "-t",
        "--threshold",
        type=thresholds,
        nargs="+",
        action=Flat,
        metavar="T",
        help=f"energy thresholds: 0.9, 90 or 90%%, several as 60,80 or 60 80 ({default})",
    )


def add_view(parser: argparse.ArgumentParser, views: Sequence[str]) -> None:
    """Add the options that `show` and `plot` share."""
    parser.add_argument("--view", choices=views, default=DEFAULT, help=f"what to show ({DEFAULT})")
    add_filter(parser)
    add_thresholds(parser)
    parser.add_argument(
        "--unit", metavar="NAME", help="heatmap, layers: k, percent, k/k0, k/kf, k/k*, energy, effective_rank ... (k)"
    )
    parser.add_argument(
        "--rank",
        type=kept_ranks,
        metavar="K",
        help="the rank K to keep: 512, or by role query=1536,key_value=512 (short: q k v o kv); heatmap and "
        "layers with --unit energy",
    )
    parser.add_argument("--against", metavar="MODEL", help="a second model, B: the same projections of both")
    add_pair(parser)
    parser.add_argument(
        "--side",
        choices=("A", "B", "B/A", DELTA),
        help="with --against: numbers of A, of B, their ratio, or those of B - A (B/A)",
    )
    parser.add_argument(
        "--line", type=reference_line, action="append", metavar="NAME=K[@ROLE]", help="layers: a rank to draw across"
    )


def add_latent(
    parser: argparse.ArgumentParser, rope: str | None = None, balance: str | None = None, bias: str | None = None
) -> None:
    """Add how keys and values would be made latent; commands with other views beside this pass no defaults."""
    of = "" if rope else "mla: "
    parser.add_argument(
        "--rope",
        default=rope,
        metavar="WAY",
        help=f"{of}what happens to RoPE: recompute (after the expansion), decoupled:D (D rows of a key that all heads "
        "share keep it), per-head:D[:high|low|uniform|norm] (D rows of each head) (recompute)",
    )
    parser.add_argument("--real", action="store_true", help=f"{of}decoupled: TransMLA's real rotation over the heads")
    parser.add_argument(
        "--balance",
        choices=("whole", "own", "none"),
        default=balance,
        help=f"{of}by what keys and values are divided: the norm of all keys, that of what has left RoPE, or nothing "
        "(whole)",
    )
    parser.add_argument(
        "--bias",
        choices=("append", "leave"),
        default=bias,
        help=f"{of}biases as one more column, under moments that have means, or left out (leave)",
    )


def add_offset(parser: argparse.ArgumentParser, when: str) -> None:
    parser.add_argument(
        "--offset",
        type=whole,
        default=0,
        metavar="N",
        help=f"{when}QK of a query N tokens after its key, RoPE applied; 0 applies none (0)",
    )


WEIGHTS = (
    "as they are (none), weighted by the gains of their norms (norm) or by an imatrix or moments FILE, or, for display "
    "only, about the mean of the inputs (centred:FILE)"
)


def add_weight(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weight", default="none", metavar="W", help=f"spectra of the weights {WEIGHTS}; ./none is a file (none)"
    )


GAUGE = "the weights as they are (raw), or gains of norms folded in and neurons of MLPs balanced (fixed)"


def add_gauge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gauge", choices=("raw", "fixed"), default="raw", help=f"{GAUGE} (raw)")


def add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filter", metavar="GLOB", help="addresses: '*.attention.key', 'layers.3', 'mlp'")


def add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        required=True,
        metavar="FILE",
        help="the text that the model reads, in UTF-8; builtin: Python's help pages",
    )


def add_version(parser: argparse.ArgumentParser) -> None:
    class Version(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            from importlib.metadata import version

            print(parser.prog, version("rankscope-tui"))  # parser.exit would write to stderr
            parser.exit()

    parser.add_argument("--version", action=Version, nargs=0, help="print the version")


def add_independent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--independent",
        action="store_true",
        help="A and B were rounded independently of each other: count A's rounding as well as B's",
    )
