"""Mutated .npy and .npz files: an array or one clean error."""

from __future__ import annotations

import numpy as np
import pytest

from bscompile.arrays import read_arrays
from bscompile.errors import StorageError


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_mutated_array_file_is_read_or_refused(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    if suffix == "npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, a=array, b=array)
    content = path.read_bytes()
    refused = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        changed = bytearray(content[: rng.integers(len(content)) if seed % 5 == 0 else None])
        for _ in range(rng.integers(1, 5)):
            if changed:
                changed[rng.integers(min(len(changed), 200))] = rng.integers(256)
        path.write_bytes(changed)
        try:
            arrays = read_arrays(path)
        except StorageError:
            refused += 1
        else:
            assert all(isinstance(entry, np.ndarray) for entry in arrays.values())
    assert refused > 50
