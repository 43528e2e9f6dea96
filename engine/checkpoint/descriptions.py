"""Small tensors that describe how others are packed: fetched along with the headers of files on a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from ..formats.tensor import PEEK_BYTES, FileStamp, Tensor
from ..quantised.schemes import describes
from .ranges import RemoteFile
from .retries import OPENING, Watch

_GAP = 1 << 16
"""Up to this many bytes between two of them are fetched along, rather than sending another request."""
_MOST_REQUESTS = 600
"""bitsandbytes has one beside each matrix: 560 in 80 layers, which take 4 s."""
_MOST_BYTES = 32_000_000

RemoteListings = Mapping[Path, tuple[list[Tensor], FileStamp | RemoteFile]]


class _Span(NamedTuple):
    """Bytes of a file that are fetched with one request."""

    file: RemoteFile
    begin: int
    end: int


def with_descriptions(listed: RemoteListings, pool: Executor, watch: Watch) -> RemoteListings:
    """The listings, with the fetched bytes as `content` of such tensors; b"" if there are too many requests or bytes.

    Raises:
        FetchError, or the client's error: a server did not send them.
    """
    wanted = {
        path: [t for t in tensors if describes(t.name) and t.end - t.begin <= PEEK_BYTES]
        for path, (tensors, stored) in listed.items()
        if isinstance(stored, RemoteFile)
    }
    spans = [span for path, tensors in wanted.items() for span in _spans(listed[path][1], tensors)]
    too_much = len(spans) > _MOST_REQUESTS or sum(span.end - span.begin for span in spans) > _MOST_BYTES
    fetched = {} if too_much else dict(zip(spans, pool.map(lambda span: _fetched(span, watch), spans), strict=True))
    made = dict(listed)
    for path, tensors in wanted.items():
        if tensors:
            found = {span: data for span, data in fetched.items() if span.file is listed[path][1]}
            contents = {t.name: _content(t, found) for t in tensors}
            held, stored = listed[path]
            made[path] = [t._replace(content=contents[t.name]) if t.name in contents else t for t in held], stored
    return made


def _spans(file: FileStamp | RemoteFile, tensors: Iterable[Tensor]) -> list[_Span]:
    """The ranges that hold these tensors; neighbours share a range."""
    assert isinstance(file, RemoteFile)
    spans: list[_Span] = []
    for tensor in sorted(tensors, key=lambda t: t.begin):
        if spans and tensor.begin - spans[-1].end <= _GAP:
            spans[-1] = spans[-1]._replace(end=max(tensor.end, spans[-1].end))
        else:
            spans.append(_Span(file, tensor.begin, tensor.end))
    return spans


def _fetched(span: _Span, watch: Watch) -> bytes:
    return b"".join(span.file.chunks(span.begin, span.end, OPENING, watch))


def _content(tensor: Tensor, found: Mapping[_Span, bytes]) -> bytes:
    return next(
        (
            data[tensor.begin - span.begin : tensor.end - span.begin]
            for span, data in found.items()
            if span.begin <= tensor.begin and tensor.end <= span.end
        ),
        b"",
    )
