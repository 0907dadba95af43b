"""An artifact in the form that another world takes it in: one file for each form."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bscompile.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        module: Exports ``export``: (artifact, folder, options, progress) -> what to open first.
        summary: One line for people.
        options: Which of ExportOptions it uses.
    """

    module: str
    summary: str
    options: tuple[str, ...] = ()


#: ``--format`` -> the form. A new one is one entry here and one file.
FORMATS = {
    "web": Form(
        "bscompile.export.web",
        "a folder with a page and a JavaScript module that run the model by WebGPU",
        options=("inputs", "against", "labels"),
    ),
    "native": Form(
        "bscompile.export.native",
        "a program for a device without Python, with its weights and an object to link with",
    ),
}


@dataclass(frozen=True, eq=False)
class ExportOptions:
    """What a form may be told.

    Attributes:
        inputs: A sample, name -> array, that comes with the model.
        against: The ONNX model, whose answers to the sample come with it.
        labels: Text file with the names of the classes, one line each.
    """

    inputs: Mapping[str, npt.NDArray[Any]] | None = None
    against: Path | None = None
    labels: Path | None = None


def export(
    artifact: str | Path,
    folder: str | Path,
    form: str,
    options: ExportOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write an artifact in another form.

    Args:
        artifact: The .bsc file.
        folder: Where to; it appears when it is complete, or not at all. An earlier export of that
            name is replaced, nothing else is.
        form: A key of FORMATS.
        options: What it is told.
        progress: Called with one line at the start of each phase.

    Returns:
        What to open first.

    Raises:
        UsageError: an unknown form, or an option that it does not use.
        TargetError: the artifact was built for something else.
        StorageError: the place is taken by something else, or cannot be written.
    """
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}", did_you_mean(form, FORMATS))
    options = options or ExportOptions()
    given = [field.name for field in fields(options) if getattr(options, field.name) is not None]
    unused = [name for name in given if name not in FORMATS[form].options]
    if unused:
        raise UsageError(f"the format {form} has no use for {', '.join(unused)}")
    write: Callable[..., Path] = importlib.import_module(FORMATS[form].module).export
    return write(Path(artifact), Path(folder), options, progress or (lambda line: None))
