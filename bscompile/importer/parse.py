"""Bytes on disk become a message of a version that we know."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bscompile.errors import ModelError

OLDEST_OPSET = 13
_PROTOBUF_LIMIT = 2**31


def parse(path: Path) -> onnx.ModelProto:
    """The file's message, without its external data."""
    if path.is_dir():
        raise ModelError(f"{path} is a directory", hint="name the .onnx file inside it")
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is not a regular file")
        size = path.stat().st_size
        if size >= _PROTOBUF_LIMIT:
            raise ModelError(
                f"{path}: {size} bytes, but one ONNX file holds less than 2 GiB",
                hint="export with external data (external_data=True)",
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    if not data:
        raise ModelError(f"{path} is empty", hint="export the model again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RecursionError):
        raise ModelError(
            f"{path} is not an ONNX file, or it is cut short", hint="export or copy it again"
        ) from None
    return proto


def check_versions(proto: onnx.ModelProto) -> None:
    """IR version and opset are ones that the onnx package knows."""
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError("not an ONNX model: no graph or no IR version")
    if not 3 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"IR version {proto.ir_version}, but 3 to {onnx.IR_VERSION} are supported",
            hint="upgrade the onnx package, or export with an older version",
        )
    versions = {
        (o.domain or "").replace("ai.onnx", "", 1): o.version
        for o in proto.opset_import
        if o.domain in ("", "ai.onnx")
    }
    opset, newest = versions.get(""), onnx.defs.onnx_opset_version()
    if opset is None:
        raise ModelError("the model names no opset of the ONNX domain", hint="export it again")
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"opset {opset}, but {OLDEST_OPSET} to {newest} are supported",
            hint="export the model with opset_version=20",
        )
