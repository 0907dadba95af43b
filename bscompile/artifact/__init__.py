"""The artifact, model.bsc: what is in it, how it is written, and how it is read and checked.

archive.py    the zip file           manifest.py   what it says about itself
weights.py    live blocks, factors   program.py    a model without a virtual machine
launches.py   kernels on GPU-like devices          shaders.py    WGSL
"""

from bscompile.artifact.archive import (
    CODE,
    MANIFEST,
    REPORT,
    WEIGHTS,
    Artifact,
    pack_params,
    read_artifact,
    write_artifact,
)
from bscompile.artifact.manifest import Manifest, Member, ParamSpec, TensorSpec

__all__ = [
    "CODE",
    "MANIFEST",
    "REPORT",
    "WEIGHTS",
    "Artifact",
    "Manifest",
    "Member",
    "ParamSpec",
    "TensorSpec",
    "pack_params",
    "read_artifact",
    "write_artifact",
]
