"""What an artifact says about itself: manifest.json as frozen, checked values.

The manifest is read before anything else of an artifact, so every field is checked for its type
and range here; docs/artifact.md describes the file for readers in other languages.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from types import MappingProxyType
from typing import Any, Final

from bscompile.errors import ArtifactError

FORMAT: Final = "bscompile artifact"
FORMAT_VERSION: Final = 1
#: What inputs, outputs and weights may hold, by numpy name.
DTYPES: Final = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the model.

    Attributes:
        name: As in the user's ONNX file.
        shape: One entry per axis: a length, or the name of a symbolic dimension. Equal names
            must have equal lengths in one call; an unnamed dimension is ``?``.
        dtype: A numpy name, such as ``float32``.
    """

    name: str
    shape: Shape
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class ParamSpec:
    """A weight: an argument of the compiled function, after the inputs.

    Attributes:
        name: Key in weights.safetensors; two parameters may share one.
        shape: Lengths of its axes.
        stored: dtype in the file.
        used: dtype that the code wants, converted to when loaded.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    used: str


@dataclass(frozen=True)
class Member:
    """Size and hash of one file inside the artifact."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that must be known before the code of an artifact may run.

    Attributes:
        target: Such as ``cpu``.
        isa: Instruction set variant that the code is made for, such as ``avx512``.
        features: CPU features without which the code would crash, as the kernel names them.
        threads: Worker threads that the code was made for.
        inputs: What ``main`` takes first, in order.
        outputs: What ``main`` returns, in order.
        params: What ``main`` takes after its inputs, in order.
        name: The model's name, for people.
        versions: Of the packages that made it: ``bscompile`` and ``apache-tvm``.
        loader: Which runtime loader runs the code.
        machine: Processor family of the code, such as ``x86_64``.
        members: Every other file of the artifact; filled in by ``write_artifact``.
    """

    target: str
    isa: str
    features: tuple[str, ...]
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    params: tuple[ParamSpec, ...]
    name: str = "model"
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())
    loader: str = "vm"
    machine: str = field(default_factory=platform.machine)
    members: Mapping[str, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))
        object.__setattr__(self, "members", MappingProxyType(dict(self.members)))

    def with_members(self, members: Mapping[str, Member]) -> Manifest:
        """The same manifest, listing these members."""
        return replace(self, members=members)

    def to_json(self) -> str:
        """The text of manifest.json."""
        body = {key: getattr(self, key) for key in self.__dataclass_fields__}
        for key in ("inputs", "outputs", "params"):
            body[key] = [asdict(entry) for entry in body[key]]
        body["versions"] = dict(self.versions)
        body["members"] = {name: asdict(member) for name, member in self.members.items()}
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **body}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read manifest.json and check every field.

        Raises:
            ArtifactError: not JSON, an unknown format version, or a field that is missing,
                unknown, of the wrong type or out of range.
        """
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"manifest.json: not valid JSON, {error}") from error
        top = _Fields("manifest.json", body)
        if top.text("format") != FORMAT:
            raise ArtifactError(f"manifest.json: not a {FORMAT}")
        version = top.integer("format_version", 0)
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"manifest.json: format version {version}, this bscompile reads {FORMAT_VERSION}",
                hint="build the model again with this version",
            )
        manifest = cls(
            target=top.text("target"),
            isa=top.text("isa"),
            features=tuple(top.texts("features")),
            threads=top.integer("threads", 1, 4096),
            inputs=tuple(_tensor_spec(entry) for entry in top.entries("inputs")),
            outputs=tuple(_tensor_spec(entry) for entry in top.entries("outputs")),
            params=tuple(_param_spec(entry) for entry in top.entries("params")),
            name=top.text("name"),
            versions={k: _text("manifest.json: versions", v) for k, v in top.table("versions")},
            loader=top.text("loader"),
            machine=top.text("machine"),
            members={name: _member(name, value) for name, value in top.table("members")},
        )
        top.finish()
        _check_unique("input", [spec.name for spec in manifest.inputs])
        _check_unique("output", [spec.name for spec in manifest.outputs])
        return manifest


def installed_versions() -> dict[str, str]:
    """The versions that decide whether code made by one installation runs in another."""
    found = {}
    for name in ("bscompile", "apache-tvm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a copied folder
            found[name] = "unknown"
    return found


class _Fields:
    """A JSON object that is taken apart field by field, each with its type."""

    def __init__(self, place: str, body: object) -> None:
        if not isinstance(body, dict):
            raise ArtifactError(f"{place}: an object is wanted, got {_kind(body)}")
        self.place, self.left = place, dict(body)

    def take(self, key: str) -> Any:
        if key not in self.left:
            raise ArtifactError(f"{self.place}: the field {key!r} is missing")
        return self.left.pop(key)

    def text(self, key: str) -> str:
        return _text(f"{self.place}: {key}", self.take(key))

    def integer(self, key: str, low: int, high: int = 2**62) -> int:
        return _integer(f"{self.place}: {key}", self.take(key), low, high)

    def entries(self, key: str) -> list[Any]:
        value = self.take(key)
        if not isinstance(value, list):
            raise ArtifactError(f"{self.place}: {key}: a list is wanted, got {_kind(value)}")
        return value

    def texts(self, key: str) -> list[str]:
        return [_text(f"{self.place}: {key}", value) for value in self.entries(key)]

    def table(self, key: str) -> list[tuple[str, Any]]:
        value = self.take(key)
        if not isinstance(value, dict):
            raise ArtifactError(f"{self.place}: {key}: an object is wanted, got {_kind(value)}")
        return list(value.items())

    def dtype(self, key: str) -> str:
        name = self.text(key)
        if name not in DTYPES:
            raise ArtifactError(f"{self.place}: unknown dtype {name!r}")
        return name

    def finish(self) -> None:
        if self.left:
            raise ArtifactError(f"{self.place}: unknown field {min(self.left)!r}")


def _tensor_spec(body: object) -> TensorSpec:
    fields = _Fields("manifest.json: tensor", body)
    name, dtype, dims = fields.text("name"), fields.dtype("dtype"), fields.entries("shape")
    fields.finish()
    place = f"manifest.json: shape of {name!r}"
    shape = [d if isinstance(d, str) and d else _integer(place, d, 0) for d in dims]
    return TensorSpec(name, tuple(shape), dtype)


def _param_spec(body: object) -> ParamSpec:
    fields = _Fields("manifest.json: weight", body)
    name, stored, used = fields.text("name"), fields.dtype("stored"), fields.dtype("used")
    place = f"manifest.json: shape of {name!r}"
    shape = tuple(_integer(place, d, 0) for d in fields.entries("shape"))
    fields.finish()
    return ParamSpec(name, shape, stored, used)


def _member(name: str, body: object) -> Member:
    fields = _Fields(f"manifest.json: member {name!r}", body)
    size, digest = fields.integer("size", 0), fields.text("sha256")
    fields.finish()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ArtifactError(f"manifest.json: member {name!r}: its sha256 is not 64 hex digits")
    return Member(size, digest)


def _text(place: str, value: object) -> str:
    if not isinstance(value, str):
        raise ArtifactError(f"{place}: text is wanted, got {_kind(value)}")
    return value


def _integer(place: str, value: object, low: int, high: int = 2**62) -> int:
    # bool is an int to Python, but not to JSON
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ArtifactError(f"{place}: a whole number of at least {low} is wanted, got {value!r}")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _check_unique(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ArtifactError(f"manifest.json: two {what}s have the same name")
