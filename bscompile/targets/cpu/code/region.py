"""Finished kernels one after the other in one parallel region, whose workers meet in between.

A region costs a microsecond and the call around it as much again. Here TVM starts one for all: in
a launch point every parallel loop is shared among the workers that are there, as many as the
user wants. They meet at a counter of finished tasks, which takes a tenth of a microsecond; TVM's
own barrier gives up the processor whenever it looks, and takes three times as long. A worker that
has looked often does so, too: what it waits for may need that very processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import tirx as T

from bscompile.targets.kernels.code import emit
from bscompile.targets.kernels.code.emit import Buffer, Expr

MEETINGS = 64  # places at which workers meet, at most
_LINE = 16  # int32 of a cache line

#: Sizes of the int32 buffer that a region counts in.
COUNTERS = (MEETINGS, _LINE)

_PATIENCE = 500  # looks, some ten nanoseconds each
_PAUSES = {
    "x86_64": "call void @llvm.x86.sse2.pause()",
    "aarch64": "call void @llvm.aarch64.hint(i32 1)",
}
_DECLARED = {
    "x86_64": "declare void @llvm.x86.sse2.pause()",
    "aarch64": "declare void @llvm.aarch64.hint(i32)",
}


class Region:
    """One parallel region, or the same statements for the caller alone.

    Args:
        counters: int32 COUNTERS that nothing else uses; None for the caller alone.
        machine: Processor family, as HardwareSpec names it.

    Attributes:
        run: How often what is emitted next has been run before; an expression of the loops around.
    """

    def __init__(self, counters: Buffer | None, machine: str) -> None:
        self._counters, self._machine = counters, machine
        self._meetings = 0
        self.run: Expr = T.int64(0)

    @contextmanager
    def begin(self) -> Iterator[None]:
        """What is emitted inside runs in the region."""
        if self._counters is None:
            yield
            return
        with T.serial(0, T.int64(MEETINGS)) as meeting:
            emit.store(self._counters, T.int32(0), meeting, T.int64(0), lanes=1)
        with T.attr(T.int32(0), "pragma_parallel_launch_point", T.int32(1)), emit.opaque():
            T.sblock_attr({"pragma_import_llvm": _llvm(self._machine)})
            yield

    def share(self, tasks: int, body: Callable[[Expr, int], None]) -> None:
        """``body(task, tasks)`` for each task; all are done when it ends."""
        if self._counters is None:
            body(T.int64(0), 1)
            return
        counter = self._counter()
        with T.parallel(0, tasks) as task:
            body(T.cast(task, "int64"), tasks)
            T.evaluate(T.call_extern("void", "bsc_arrive", counter))
        T.evaluate(T.call_extern("void", "bsc_meet", counter, _due(self.run, tasks)))

    def insert(self, kernel: Any, tensors: Sequence[Buffer | Expr]) -> None:
        """A kernel's statements; all that it does is done when they end.

        Args:
            kernel: A PrimFunc for which ``fits`` holds.
            tensors: For each of its parameters the buffer, or the address of the first element,
                of which it makes a tensor of its own shape.
        """
        own = s_tir.renew_defs(kernel)
        alone = self._counters is None
        body = _content(own.body) if alone else _changed(own.body, self._meeting, self.run)
        _emit(own, tensors, body)

    def _meeting(self, loop: Any, run: Expr) -> Any:
        counter = self._counter()
        arrive = tirx.Evaluate(T.call_extern("void", "bsc_arrive", counter))
        tasks = tirx.SeqStmt([loop.body, arrive])
        again = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, tasks)
        meet = T.call_extern("void", "bsc_meet", counter, _due(run, loop.extent))
        return tirx.SeqStmt([again, tirx.Evaluate(meet)])

    def _counter(self) -> Expr:
        assert self._counters is not None
        self._meetings += 1
        if self._meetings > MEETINGS:
            raise ValueError(f"a region has at most {MEETINGS} meetings")
        return T.address_of(self._counters[self._meetings - 1, 0])


def _due(run: Expr, tasks: Expr) -> Expr:
    """What a counter must have reached."""
    return T.cast((run + 1) * T.cast(tasks, "int64"), "int32")


def has_loop(stmt: Any) -> bool:
    """Whether there is a parallel loop, or control flow that leads to one."""
    if isinstance(stmt, s_tir.SBlockRealize):
        return has_loop(stmt.block.body)
    if isinstance(stmt, tirx.For):
        return int(stmt.kind) == tirx.ForKind.PARALLEL or has_loop(stmt.body)
    if isinstance(stmt, tirx.SeqStmt):
        return any(has_loop(part) for part in stmt.seq)
    if isinstance(stmt, tirx.IfThenElse):
        cases = [stmt.then_case, stmt.else_case]
        return any(has_loop(case) for case in cases if case is not None)
    return False


def fits(kernel: Any) -> bool:
    """Whether a kernel can be part of a region.

    Around parallel loops every worker runs the same, so there must be nothing but control flow.
    What has no such loop fits whatever it does: one worker runs it.
    """
    return _changed(kernel.body, lambda loop, _: loop, T.int64(0)) is not None


def _emit(kernel: Any, tensors: Sequence[Buffer | Expr], body: Any) -> None:
    """The body, its parameters views of ``tensors``, their open sizes those of the same."""
    known: set[Any] = set()
    for parameter, tensor in zip(kernel.params, tensors, strict=True):
        is_buffer = hasattr(tensor, "shape")
        for axis, size in enumerate(parameter.shape):
            if isinstance(size, tirx.Var) and size not in known and is_buffer:
                known.add(size)
                T.Bind(T.cast(tensor.shape[axis], "int64"), var=size)
        data = tensor.data if is_buffer else tensor
        T.add_to_parent(tirx.DeclBuffer(parameter, data=data))
    T.add_to_parent(body)


def _content(body: Any) -> Any:
    """What is in a block that does nothing itself, such as a function's root."""
    return body.block.body if isinstance(body, s_tir.SBlockRealize) and _plain(body) else body


def _plain(realize: Any) -> bool:
    block = realize.block
    made = block.alloc_buffers or block.iter_vars or block.match_buffers or block.annotations
    return not made and block.init is None


def _changed(stmt: Any, change: Callable[[Any, Expr], Any], run: Expr) -> Any:
    """The statements with every parallel loop changed; None where they do not fit.

    Args:
        stmt: Statements.
        change: (loop, how often it has been run before) -> what takes its place.
        run: How often the statements have been run before.
    """
    if isinstance(stmt, tirx.Bind):
        return stmt
    if not has_loop(stmt):
        kind = tirx.ForKind.PARALLEL
        return change(tirx.For(tirx.Var("alone", "int32"), 0, 1, kind, _content(stmt)), run)
    if isinstance(stmt, s_tir.SBlockRealize):
        return _changed(stmt.block.body, change, run) if _plain(stmt) else None
    if isinstance(stmt, tirx.For):
        if int(stmt.kind) == tirx.ForKind.PARALLEL:
            return change(stmt, run)
        times, index = (T.cast(part, "int64") for part in (stmt.extent, stmt.loop_var))
        body = _changed(stmt.body, change, run * times + index)
        if body is None or int(stmt.kind) != tirx.ForKind.SERIAL:
            return None
        return tirx.For(stmt.loop_var, stmt.min, stmt.extent, tirx.ForKind.SERIAL, body)
    if isinstance(stmt, tirx.SeqStmt):
        parts = [_changed(part, change, run) for part in stmt.seq]
        return None if None in parts else tirx.SeqStmt(parts)
    if isinstance(stmt, tirx.IfThenElse):
        cases = [stmt.then_case, stmt.else_case]
        done = [None if case is None else _changed(case, change, run) for case in cases]
        if any(new is None and old is not None for new, old in zip(done, cases, strict=True)):
            return None
        return tirx.IfThenElse(stmt.condition, *done)
    return None


def _llvm(machine: str) -> str:
    """The two functions of a meeting.

    ``bsc_arrive(counter)``: one more task is done, and what it wrote is there for all to see.
    ``bsc_meet(counter, due)``: so many tasks are done.
    """
    return f"""
declare i32 @sched_yield()
{_DECLARED.get(machine, "")}
define weak void @bsc_arrive(ptr %counter) alwaysinline {{
  %before = atomicrmw add ptr %counter, i32 1 release
  ret void
}}
define weak void @bsc_meet(ptr %counter, i32 %due) {{
entry:
  br label %look
look:
  %looks = phi i32 [ 0, %entry ], [ %more, %wait ], [ {_PATIENCE}, %yield ]
  %done = load atomic i32, ptr %counter acquire, align 4
  %left = sub i32 %due, %done
  %all = icmp sle i32 %left, 0
  br i1 %all, label %end, label %again
again:
  %enough = icmp sge i32 %looks, {_PATIENCE}
  br i1 %enough, label %yield, label %wait
wait:
  {_PAUSES.get(machine, "")}
  %more = add i32 %looks, 1
  br label %look
yield:
  %ignored = call i32 @sched_yield()
  br label %look
end:
  ret void
}}
"""
