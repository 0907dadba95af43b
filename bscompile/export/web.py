"""A folder that any static server can serve: the artifact's files, the loader and a page.

    index.html, page.js, …       the page, and what only it needs
    bscompile.js, …              the loader, an ES module without dependencies
    manifest.json, code/, …      the members of the artifact, byte for byte
    sample.safetensors           an input, and what a reference answers to it
    page.json                    what else the page shows

The loader compares each member with the manifest's hashes before it uses it.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bscompile.artifact import MANIFEST, read_artifact
from bscompile.artifact.manifest import Manifest
from bscompile.artifact.weights import chunks_of
from bscompile.errors import StorageError, TargetError, UsageError
from bscompile.export import ExportOptions
from bscompile.files import atomic_folder, check_readable
from bscompile.reference import Reference
from bscompile.samples import integer_limits, make_inputs

Array = npt.NDArray[Any]

LOADER: Final = "webgpu"
PAGE: Final = "index.html"
_SETTINGS: Final = "page.json"
_SAMPLE: Final = "sample.safetensors"


def export(
    artifact: Path, folder: Path, options: ExportOptions, progress: Callable[[str], None]
) -> Path:
    """Write the folder and return its page; see bscompile.export.

    The page begins with the sample, random numbers where none is given. With ``against`` it shows
    how far the answer is from onnxruntime's.
    """
    _check_free(folder)
    labels = None if options.labels is None else read_labels(options.labels)
    progress("reading the artifact")
    manifest = read_artifact(artifact).manifest
    if manifest.loader != LOADER:
        raise TargetError(
            f"{artifact}: built for {manifest.target}, a browser needs webgpu",
            hint="build it with --target webgpu",
        )
    progress("computing the sample")
    sample, judge = _sample(manifest, options)
    progress("writing the folder")
    with atomic_folder(folder) as staged:
        web = resources.files("bscompile.targets").joinpath("webgpu", "web")
        for entry in web.iterdir():
            (staged / entry.name).write_bytes(entry.read_bytes())
        _unpack(artifact, manifest, staged)
        with (staged / _SAMPLE).open("wb") as file:
            file.writelines(chunks_of(sample))
        settings = {"labels": labels, "expected_by": judge}
        (staged / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    return folder / PAGE


def read_labels(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        StorageError: it cannot be read, or is no text.
    """
    check_readable(path)
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: not a text file of one label per line") from error


def _check_free(folder: Path) -> None:
    """Refuse to replace what is not ours, before anything is computed."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StorageError(f"{folder}: cannot be written, it is no folder", "name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        ours = all((folder / name).is_file() for name in (PAGE, MANIFEST, _SETTINGS))
        if not ours:
            raise StorageError(
                f"{folder}: cannot be replaced, it holds files that are no export",
                hint="name a new or empty folder",
            )


def _sample(manifest: Manifest, options: ExportOptions) -> tuple[dict[str, Array], str | None]:
    """(tensors of the sample, who computed the expected ones)."""
    reference, limits = None, {}
    if options.against is not None:
        import onnx

        reference = Reference(options.against, threads=1)
        reference.check_contract(manifest.inputs, manifest.outputs)
        limits = integer_limits(onnx.load(str(options.against), load_external_data=False))
    inputs = options.inputs
    if inputs is None:
        inputs = make_inputs(manifest.inputs, {}, np.random.default_rng(0), limits)
    _check_inputs(manifest, inputs)
    sample = {f"input/{name}": array for name, array in inputs.items()}
    if reference is None:
        return sample, None
    sample |= {f"expected/{name}": array for name, array in reference.run(inputs).items()}
    return sample, f"onnxruntime {importlib.metadata.version('onnxruntime')}"


def _check_inputs(manifest: Manifest, inputs: Mapping[str, Array]) -> None:
    for spec in manifest.inputs:
        if spec.name not in inputs:
            raise UsageError(f"input {spec.name} is missing", hint=f"the model takes {spec}")
        array = inputs[spec.name]
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            got = f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"
            raise UsageError(f"input {spec} is wanted, got {got}")


def _unpack(artifact: Path, manifest: Manifest, folder: Path) -> None:
    """Copy the members byte for byte: the manifest has their hashes, which were checked."""
    with zipfile.ZipFile(artifact) as archive:
        for name in (MANIFEST, *manifest.members):
            goal = folder / name
            goal.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, goal.open("wb") as target:
                shutil.copyfileobj(source, target)
