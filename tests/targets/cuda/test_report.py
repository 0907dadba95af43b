"""The GPU report: what is carried, what comes first, and that a bare Python can run it."""

from __future__ import annotations

import json
import tarfile

import ml_dtypes
import numpy as np
import pytest

from benchmarks.gpu import build
from benchmarks.gpu.archive import pack, unpack
from benchmarks.gpu.cases import all_cases
from benchmarks.gpu.device import rounded, widened
from benchmarks.gpu.dry_run import dry_run
from benchmarks.gpu.measure import checked
from benchmarks.gpu.report import page
from bscompile.targets.cuda.hardware import hardware


def built(place, rng):
    """A folder as ``build`` leaves it: 20 kB of kernels, three models of 10 kB."""
    folder = place / "gpu"
    (folder / "models").mkdir(parents=True)
    (folder / "k.so").write_bytes(rng.bytes(20000))
    names = ("mlp", "bert", "ffn")
    for name in names:
        (folder / "models" / f"{name}.bsc").write_bytes(rng.bytes(10000))
    calls = [{"name": name} for name in names]
    (folder / "models" / "models.json").write_text(json.dumps({"calls": calls, "small": True}))
    return folder


def test_what_there_is_no_room_for_are_the_last_models(tmp_path, rng):
    folder = built(tmp_path, rng)
    path, lines = pack(folder, limit=35000)
    assert path.stat().st_size <= 35000
    assert [line for line in lines if "left out" in line] == [
        "bert is left out: no room",
        "ffn is left out: no room",
    ]
    with tarfile.open(path) as archive:
        inside = set(archive.getnames())
    assert inside == {"k.so", "models/mlp.bsc", "models/models.json"}
    with pytest.raises(SystemExit, match=r"gpu\.tar\.xz has \d+ bytes, and 9000 may be carried"):
        pack(folder, limit=9000)


def test_the_archive_alone_is_enough(tmp_path, rng):
    folder = built(tmp_path, rng)
    pack(folder)
    kernels = (folder / "k.so").read_bytes()
    folder.rename(tmp_path / "elsewhere")
    unpack(folder)
    assert (folder / "k.so").read_bytes() == kernels


def test_what_was_asked_for_is_measured_first():
    cases = all_cases(small=False)
    assert {(case.shape, case.density) for case in cases[:6]} == {("llama", 0.1)}
    assert {case.block for case in cases[:6]} == {4, 8, 16, 32, 64, 128}
    assert cases[6].form == "dense"
    assert {case.shape for case in cases[19:]} == {"bert", "llama3"}


@pytest.mark.parametrize("case", all_cases(small=True), ids=lambda case: case.name)
def test_places_name_every_live_number_once(case):
    """Kernels are carried with the places of a weight's numbers instead of the numbers."""
    live = np.flatnonzero(np.kron(case.mask(), np.ones((case.block, case.block))))
    plans = list(build._plans(case, hardware("sm_90"), True))
    assert plans
    for problem, template, config in plans:
        (_, values), *_ = build._pack(case, problem, template, config)
        named = values[values > 0] - 1
        assert len(np.unique(named)) == len(named)
        assert np.isin(live, named).all()


def test_what_was_dropped_or_missing_is_on_the_page():
    found = {
        "device": "a GPU",
        "peers": [],
        "missing": ["cuBLAS is left out: libcublas was not found"],
        "ceilings": {"tflops": 790.0, "memory_tbs": 3.0, "launch_us": 1.0},
        "rows": [],
        "dropped": {"grid": ["bert-b16-d5"], "models": []},
    }
    text = page(found)
    assert "libcublas was not found." in text
    assert "No time was left for 1 of grid: bert-b16-d5." in text


def test_bits_are_those_of_bfloat16(rng):
    array = rng.standard_normal(1000).astype(np.float32)
    exact = array.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(rounded(array), exact.view(np.uint16))
    np.testing.assert_array_equal(widened(rounded(array)), exact.astype(np.float32))


def test_rows_that_differ_from_those_they_repeat_are_wrong(rng):
    wanted = rng.standard_normal((4, 3))
    got = np.resize(wanted, (9, 3)).astype(np.float32)
    assert checked(got, wanted) < 1e-6
    got[7, 1] += 1e-3
    assert np.isnan(checked(got, wanted))


@pytest.mark.slow
def test_both_halves_run_and_the_second_in_a_bare_python(capfd):
    """Against the emulated device and cuBLAS; it fails where a result is wrong."""
    assert dry_run(["factorized"]) == 0
    said = capfd.readouterr().out
    assert "| small-b16-d30-r2 | 5 |" in said
    assert "torch and its Triton kernels are left out" in said
    assert "cuBLAS is left out" not in said
