"""Recognise files that hold no weights we read, by their first bytes or their names, and say what to do about them."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from ..errors import printable

HEAD = 512
"""The number of first bytes of a file from which its kind is recognised."""

NO_MODEL = "is {}, not a model: name the file with the weights"
_AGAIN = "download it again, logged in where its model asks for that"
_CONTENT = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), phrase)
    for pattern, phrase in (
        (
            rb"(\xef\xbb\xbf)?\s*version https://(git-lfs|hawser)\.",
            "is a pointer of Git LFS, not the file itself: fetch that with  git lfs pull",
        ),
        (rb"# xet version", "is a pointer of Xet, not the file itself: download it again with  hf download"),
        (rb"/annex/objects/", "is a pointer of git-annex, not the file itself: fetch that with  git annex get"),
        (rb"\0{16}", "is filled with zeros, as downloads that were cut short are: download it again"),
        (
            rb"(\xef\xbb\xbf)?\s*<([!?]|[a-z]\w*[\s>])",
            f"is a web page or a server's error, not a file of a model: {_AGAIN}",
        ),
        (rb"GGUF", "is a GGUF file under another name: give it the suffix .gguf"),
        (rb"(lmgg|fmgg|tjgg|algg)", "is a GGML file, older than GGUF: convert it with llama.cpp's scripts"),
        (rb"\x89HDF\r\n\x1a\n", "is an HDF5 file, as TensorFlow and Keras write, which is not read: save safetensors"),
        (rb".{4}TFL3", "is a TensorFlow Lite file, which is not read: name the model it was made of"),
        (
            rb"[\x01-\x20]\0\0\0.\0\w{1,60}Spec\0",
            "is a CTranslate2 file, which is not read: name the model it was converted from",
        ),
        (rb"\x93NUMPY", "is a NumPy array, which is not read: save safetensors"),
        (rb"(\x1f\x8b|\xfd7zXZ|\x28\xb5\x2f\xfd|BZh\d|7z\xbc\xaf)", "is compressed: unpack it first"),
        (rb".{257}ustar", "is a tar archive: unpack it first"),
        (rb"PK\x03\x04", "is a zip file, as torch.save writes: give it the suffix .pt"),
        (rb".{5}\0\0\0\{", "is a safetensors file under another name: give it the suffix .safetensors"),
    )
)
_COMPLAINTS = {"error", "errors", "message", "detail"}
_ABOUT = {
    "status", "statusCode", "status_code", "code", "error_code", "error_description", "path", "timestamp", "type",
    "requestId", "request_id", "documentation_url", "success", "title", "url",
}  # fmt: skip
_NAMES = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r".+\.onnx([._]data)?", "ONNX"),
        (r".+\.(h5|hdf5|keras)", "TensorFlow or Keras"),
        (r".+\.(pb|tflite)|.+\.ckpt(-\d+)?\.(index|meta|data-\d+-of-\d+)", "TensorFlow"),
        (r".+\.msgpack", "Flax"),
        (r".+\.(engine|plan)", "TensorRT"),
        (r".+\.(mlmodel|mlpackage)", "Core ML"),
        (r".+\.pdparams", "PaddlePaddle"),
        (r".+\.nemo", "NeMo"),
        (r".+\.(npy|npz)", "NumPy"),
        (r".+\.distcp", "torch.distributed"),
        (r".+\.gguf[.-](part|split).+", "a GGUF cut in pieces (join them with cat)"),
        (r".+\.(incomplete|part|partial|crdownload|download|aria2|tmp)", "an unfinished download (fetch it again)"),
        (r".+\.(pth?|ckpt|bin)\.tar", "a PyTorch file under another name (give it the suffix .pt)"),
        (r".+\.(tar|tgz|zip|gz|bz2|xz|zst|7z|dduf)", "an archive (unpack it)"),
        (r"openvino.*\.(xml|bin)", "OpenVINO"),
        (r".+\.(pkl|pickle|joblib)", "Python's pickle"),
        (r".+\.(ggml|ggmf|ggjt)", "a GGML file, older than GGUF (convert it with llama.cpp's scripts)"),
        (r".+\.ot", "tch for Rust"),
    )
)


def content(head: bytes, wanted: str = "weights") -> str:
    """Say what a file that begins with `head` (HEAD bytes, or the whole file) is, as the end of a sentence about it; ""
    if that cannot be told. For files that turned out not to be `wanted`, the kind that their names promise.
    """
    if not head:
        return "is empty: download it again"
    if (known := signature(head)) or not (text := _text(head)):
        return known
    kind = "JSON" if text[0] in "{[" else "text"
    return f'is {kind} ("{printable(" ".join(text.split()), 60)}"), not {wanted}: {_AGAIN}'


def signature(head: bytes) -> str:
    """Say what a file is whose first bytes no other kind of file has, as `content` does; "" for any other file."""
    if is_imatrix(head):
        return NO_MODEL.format("an importance matrix of llama.cpp")
    return next((phrase for pattern, phrase in _CONTENT if pattern.match(head)), "")


def answer_of_a_server(found: Mapping[str, Any]) -> bool:
    """True if a JSON object is an error that a server sent in place of a file."""
    return not found.keys().isdisjoint(_COMPLAINTS) and found.keys() <= _COMPLAINTS | _ABOUT


def kind_by_name(name: str) -> str:
    """The program whose files of weights have such names, or, with an article, a description of the file; "" if we read
    such files, or they hold no weights.
    """
    return next((kind for pattern, kind in _NAMES if pattern.fullmatch(name)), "")


def _text(head: bytes) -> str:
    """The bytes as text without surrounding white space, "" if they are not text."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # more than a letter cut off at the end
            return ""
        text = head[: error.start].decode("utf-8")
    text = text.removeprefix("\ufeff").strip()
    return text if all(c.isprintable() or c.isspace() for c in text) else ""


def is_imatrix(head: bytes) -> bool:
    """True for importance matrices from before llama.cpp wrote them as GGUF: a count, then for each name its
    numbers."""
    if len(head) < 8:
        return False
    count, length = struct.unpack_from("<ii", head)
    name = head[8 : 8 + length] if 0 < length <= HEAD // 2 else b""
    return 0 < count < 1_000_000 and re.fullmatch(rb"[\w.-]*\.weight", name) is not None
