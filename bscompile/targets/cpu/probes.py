"""Small kernels whose time says how fast a CPU is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.dot import Product
from bscompile.targets.kernels.code.emit import Buffer, Expr

_CHAINS = 10  # more than latency times units of any multiply-add pipeline, fewer than registers
_STEPS = 2048
MULTIPLY_ADDS = _CHAINS * _STEPS  # vector instructions of one call of multiply_add
_TASKS = 64


def multiply_add(lanes: int) -> Any:
    """(out [1024]): MULTIPLY_ADDS vector multiply-adds in independent chains."""

    def body(out: Buffer) -> None:
        with emit.opaque():
            sums = emit.accumulators(_CHAINS, lanes)
            factor = T.bind(emit.load(out, 0, lanes=lanes))
            for acc in sums:
                emit.store(acc, emit.constant(1.0, lanes), 0, lanes=lanes)
            with T.serial(0, _STEPS // 8):
                for _ in range(8):
                    for acc in sums:
                        emit.store(
                            acc, emit.load(acc, 0, lanes=lanes) * factor + factor, 0, lanes=lanes
                        )
            for i, acc in enumerate(sums):
                emit.store(out, emit.load(acc, 0, lanes=lanes), 64 + i * lanes, lanes=lanes)

    return _function("multiply_add", body)


def dot_product(product: Product, lanes: int) -> Any:
    """(out [1024]): MULTIPLY_ADDS dot product instructions in independent chains."""

    def body(out: Buffer) -> None:
        with emit.opaque():
            if product.llvm:
                T.sblock_attr({"pragma_import_llvm": product.llvm})
            sums = emit.accumulators(_CHAINS, lanes, product.total)
            words = T.bind(T.reinterpret(f"int32x{lanes}", emit.load(out, 0, lanes=lanes)))
            for acc in sums:
                emit.store(acc, emit.load(out, 32, lanes=lanes), 0, lanes=lanes)
            with T.serial(0, _STEPS // 8):
                for _ in range(8):
                    for acc in sums:
                        total = emit.load(acc, 0, lanes=lanes)
                        total = product.multiply_add(total, words, words, lanes)
                        emit.store(acc, total, 0, lanes=lanes)
            for i, acc in enumerate(sums):
                emit.store(out, emit.load(acc, 0, lanes=lanes), 64 + i * lanes, lanes=lanes)

    return _function("dot_product", body, dtype=product.total)


def read(lanes: int) -> Any:
    """(data [n], out [1024]): sum data on one core; n is a multiple of 256."""

    def body(data: Buffer, n: Expr, out: Buffer) -> None:
        _sum(data, out, T.int64(0), T.floordiv(n, T.int64(256)), T.int64(0), lanes)

    return _function("read", body, with_data=True)


def read_all(lanes: int) -> Any:
    """(data [n], out [1024]): sum data on all cores."""

    def body(data: Buffer, n: Expr, out: Buffer) -> None:
        chunks = T.floordiv(n, T.int64(256 * _TASKS))
        with T.parallel(0, _TASKS) as p:
            task = T.cast(p, "int64")
            _sum(data, out, task * chunks, (task + 1) * chunks, task * 16, lanes)

    return _function("read_all", body, with_data=True)


def launch() -> Any:
    """(out [1024]): a parallel region with next to nothing in it."""

    def body(out: Buffer) -> None:
        with T.parallel(0, _TASKS) as p:
            T.buffer_store(out, T.float32(1), [p])

    return _function("launch", body)


def _sum(data: Buffer, out: Buffer, first: Expr, last: Expr, at: Expr, lanes: int) -> None:
    with emit.opaque():
        sums = emit.accumulators(8, lanes)
        for acc in sums:
            emit.store(acc, emit.constant(0.0, lanes), 0, lanes=lanes)
        with T.serial(first, last) as chunk:
            for i in range(256 // lanes):
                acc = sums[i % 8]
                value = emit.load(data, chunk * 256 + i * lanes, lanes=lanes)
                emit.store(acc, emit.load(acc, 0, lanes=lanes) + value, 0, lanes=lanes)
        total = emit.load(sums[0], 0, lanes=lanes)
        for acc in sums[1:]:
            total = total + emit.load(acc, 0, lanes=lanes)
        emit.store(out, total, at, lanes=lanes)


def _function(
    name: str, body: Callable[..., None], with_data: bool = False, dtype: str = "float32"
) -> Any:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            arguments = []
            if with_data:
                handle, n = T.arg("data", T.handle()), T.int64()
                arguments = [T.match_buffer(handle, (n,), "float32"), n]
            out = T.match_buffer(T.arg("out", T.handle()), (1024,), dtype)
            body(*arguments, out)
        return builder.get()
