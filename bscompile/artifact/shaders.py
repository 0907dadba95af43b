"""WGSL of a static program: one text, one function after the other.

Every function is a shader module of its own, because their declarations share names; a comment
begins each, so the whole stays readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bscompile.errors import ArtifactError

#: The artifact member that holds it.
MEMBER: Final = "code/kernels.wgsl"

_MARK = "// Function: "


def join_shaders(sources: Mapping[str, str]) -> str:
    """The text of code/kernels.wgsl.

    Args:
        sources: Entry point -> the module that defines it.
    """
    return "".join(f"{_MARK}{name}\n{source.strip()}\n\n" for name, source in sources.items())


def split_shaders(text: bytes) -> dict[str, str]:
    """Entry point -> the module that defines it.

    Raises:
        ArtifactError: it is no text.
    """
    try:
        _, *sections = text.decode().split(_MARK)
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{MEMBER}: no text, {error}") from error
    named = (section.partition("\n") for section in sections)
    return {name.strip(): source for name, _, source in named}
