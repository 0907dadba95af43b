"""The description of this CPU: variants, the cache file, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from bscompile.devices.cpu import available_threads, cpu_features
from bscompile.errors import TargetError
from bscompile.targets.cpu import measure
from bscompile.targets.cpu.hardware import (
    INSTRUCTION_SETS,
    hardware,
    host_instruction_set,
    llvm_target,
)

RATES = measure.Rates(100.0, (200.0, 100.0, 50.0), 20.0, 30.0, 3e-6, {"avx512_bf16": 200.0})
CACHES = (32 << 10, 1 << 20, 32 << 20)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """A cache folder of its own, and the measurements asked for in it."""
    calls = []

    def fake(options, vector_bytes, caches, extensions):
        calls.append(options["mcpu"])
        return RATES

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measure, "measure", fake)
    monkeypatch.setattr(measure, "_asked", set())
    return calls


def measured(name="some CPU"):
    return measure.measured_rates(name, {"mcpu": "x86-64-v4"}, 64, CACHES, {})


def test_rates_are_measured_once_in_a_process(counted, tmp_path):
    assert measured() == RATES
    assert measured() == RATES
    assert len(counted) == 1
    (file,) = (tmp_path / "bscompile").iterdir()
    assert file.name == f"cpu-some-CPU-x86-64-v4-v{measure.VERSION}.json"


def test_the_best_of_the_first_processes_counts(counted, monkeypatch):
    better = measure.Rates(90.0, (210.0, 90.0, 50.0), 25.0, 40.0, 2e-6, {"avx512_vnni": 300.0})
    for process, rates in enumerate((RATES, better, RATES, better)):
        monkeypatch.setattr(measure, "_asked", set())

        def fake(*_, rates=rates, process=process):
            counted.append(process)
            return rates

        monkeypatch.setattr(measure, "measure", fake)
        found = measured()
    assert counted == list(range(measure.ROUNDS))
    products = {"avx512_bf16": 200.0, "avx512_vnni": 300.0}
    assert found == measure.Rates(100.0, (210.0, 100.0, 50.0), 25.0, 40.0, 3e-6, products)


def test_a_process_with_one_worker_does_not_say_what_a_region_costs(counted, monkeypatch):
    alone = replace(RATES, launch_seconds=math.inf)
    monkeypatch.setattr(measure, "measure", lambda *_: alone)
    for _ in range(measure.ROUNDS):
        assert measured() == measured() == alone
        monkeypatch.setattr(measure, "_asked", set())
    monkeypatch.setattr(measure, "measure", lambda *_: RATES)
    assert measured() == RATES


def test_another_cpu_is_measured_again(counted):
    measured()
    measured("another CPU")
    assert len(counted) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"gflops": 1}', json.dumps({"gflops": -1, "cache_gbps": []})]
)
def test_a_broken_cache_file_is_replaced(counted, tmp_path, text):
    measured()
    (file,) = (tmp_path / "bscompile").iterdir()
    file.write_text(text)
    assert measured() == RATES
    assert len(counted) == 2
    assert json.loads(file.read_text())["gflops"] == 100.0


def test_an_unusable_cache_folder_is_no_error(counted, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measured() == RATES


def test_this_machine_is_measured():
    spec = hardware()
    assert spec.cores == available_threads()
    assert spec.isa == host_instruction_set().name
    assert set(spec.features) <= cpu_features()
    assert 1 < spec.peak_gflops["float32"] < 1000
    memory = (spec.core_memory_gbps, spec.memory_gbps)
    assert all(np.isfinite(rate) and rate > 0.1 for rate in (*spec.cache_gbps, *memory))
    assert spec.core_memory_gbps <= spec.memory_gbps
    assert 1e-7 < spec.launch_seconds < 1e-2


@pytest.mark.parametrize("variant", list(INSTRUCTION_SETS))
def test_every_variant_can_be_compiled_for(variant):
    """Also those that this machine cannot run."""
    import tvm

    from bscompile.dialect import LinearOp
    from bscompile.targets.base import problem_of
    from bscompile.targets.cpu.templates import TEMPLATES

    spec = hardware(variant, threads=3)
    assert spec.cores == 3
    assert spec.vector_bytes == INSTRUCTION_SETS[variant].vector_bytes
    weight = np.ones((40, 24), np.float32)
    problem = problem_of(LinearOp("layer", weight), None, weight.dtype)
    config = TEMPLATES[0].space(problem, spec)[0]
    kernel = TEMPLATES[0].build(problem, weight, config, spec)
    module = tvm.compile(tvm.IRModule({"dense": kernel.prim_func}), target=llvm_target(spec))
    register = {"avx512": "zmm", "avx2": "ymm", "sse2": "xmm", "neon": "v0.4s"}[variant]
    assert register in module.mod.inspect_source("asm")


def test_a_variant_says_what_it_has_beyond_its_baseline():
    amx = hardware("amx", 2)
    assert amx.isa == "avx512"
    assert not {"amx_tile", "avx512_bf16"} & set(amx.features)
    assert {"amx_tile", "amx_bf16", "avx512_bf16"} <= set(amx.extended("bfloat16").features)
    assert amx.extended("float32").features == amx.features
    assert "+amx-int8" in list(llvm_target(amx.extended("int8")).attrs["mattr"])
    plain = hardware("avx512", 2)
    assert plain.extended("bfloat16", "int8").features == plain.features


def test_the_peak_follows_the_precision():
    plain, amx = hardware("avx512", 2).peak_gflops, hardware("amx", 2).peak_gflops
    assert plain["bfloat16"] == plain["float16"] == plain["int8"] == plain["float32"]
    assert amx["int8"] > amx["bfloat16"] > amx["float32"]
    here = hardware("", 2)
    for precision in here.extensions:  # what has instructions of its own is faster with them
        assert here.peak_gflops[precision] > 1.2 * here.peak_gflops["float32"]


def test_an_unknown_variant_is_refused():
    with pytest.raises(TargetError, match=r"unknown variant 'avx521'.*Did you mean 'avx512'"):
        hardware("avx521")
