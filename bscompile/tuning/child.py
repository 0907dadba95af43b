"""The measurer that there is: a worker process that lives from candidate to candidate.

Building takes about 0.2 s in a process that has TVM loaded, so it is kept; a candidate that
crashes or hangs takes it down, and the next candidate finds a fresh one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from bscompile.errors import TargetError
from bscompile.tuning import worker
from bscompile.tuning.measurer import Layer, Measurement, Measurer, crashed
from bscompile.tuning.record import TIMEOUT, Variant
from bscompile.tuning.runner import LocalRunner, Runner

_START_SECONDS = 120.0  # importing TVM on a busy machine; the reference of a large layer


class ChildMeasurer(Measurer):
    """Measures in a child process.

    Args:
        seconds: Time limit of one candidate.
        runner: Where kernels run; this machine by default.
        turns: A lock file that several measurers of one machine share.
    """

    def __init__(
        self, seconds: float = 15.0, runner: Runner | None = None, turns: Path | None = None
    ) -> None:
        self._seconds, self._runner, self._turns = seconds, runner or LocalRunner(), turns
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._complaints: IO[bytes] | None = None
        self._layer: Layer | None = None
        self._aborted = False

    def open(self, layer: Layer) -> None:
        """Send the layer over; the process is started with the first one."""
        self._layer = layer
        if self._process is not None:
            self._send_layer()

    def measure(
        self, variants: Sequence[Variant], *, rounds: int = 5, give_up: float | None = None
    ) -> list[Measurement]:
        """Measure in the child; on a crash or a hang it is ended and all get the blame."""
        layer = self._layer
        assert layer is not None, "open() comes first"
        if self._process is None:
            self._start(layer.context.hardware.cores)
            self._send_layer()
            if self._process is None:
                raise TargetError("the tuning worker ends as soon as it has started")
        template = layer.context.target.template
        body = {
            "variants": [(variant, template(variant.template)) for variant in variants],
            "rounds": rounds,
            "give_up": give_up,
        }
        try:
            answer: list[Measurement] = self._ask(
                worker.MEASURE, body, self._seconds * max(1, len(variants))
            )
        except TimeoutError:
            limit = f"took longer than {self._seconds:g} s"
            self.close()
            return [Measurement(TIMEOUT, detail=limit)] * len(variants)
        except (EOFError, OSError):
            detail = self._last_words()
            self.close()
            return [crashed(detail)] * len(variants)
        return answer

    def abort(self) -> None:
        """End the process; the thread that waits for it sees the pipe break."""
        self._aborted = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process at once; it holds nothing worth keeping."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for resource in (self._pipe, self._complaints):
            if resource is not None:
                resource.close()
        self._process = self._pipe = self._complaints = None

    def _start(self, threads: int) -> None:
        ours, theirs = Pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        # Kernels are timed as they will run: see runtime/tvm_library.py.
        environment.setdefault("TVM_NUM_THREADS", str(threads))
        environment.setdefault("TVM_BIND_THREADS", "0")
        command = f"from bscompile.tuning.worker import main; main({theirs.fileno()})"
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        self._pipe = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", command],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                start_new_session=True,  # Ctrl-C is for us; we end the child
            )
        if self._aborted:  # while this thread was starting it
            self._process.kill()
        self._expect_ready()

    def _send_layer(self) -> None:
        assert self._layer is not None
        assert self._pipe is not None
        try:
            self._pipe.send((worker.OPEN, worker.opening(self._layer, self._runner, self._turns)))
        except OSError:  # it died since it last answered
            self.close()
            return
        self._expect_ready()

    def _expect_ready(self) -> None:
        try:
            self._receive(_START_SECONDS)
        except (TimeoutError, EOFError, OSError) as error:
            words = self._last_words()
            self.close()
            raise TargetError(f"the tuning worker does not start: {words}") from error

    def _ask(self, kind: str, body: dict[str, Any], seconds: float) -> Any:
        assert self._pipe is not None
        self._pipe.send((kind, body))
        return self._receive(seconds)

    def _receive(self, seconds: float) -> Any:
        assert self._pipe is not None
        if not self._pipe.poll(seconds):
            raise TimeoutError
        return self._pipe.recv()

    def _last_words(self) -> str:
        """How the process ended, and the last line that it wrote."""
        assert self._process is not None
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=5)
        text = ""
        if self._complaints is not None:
            self._complaints.seek(0)
            lines = self._complaints.read()[-2000:].decode(errors="replace").strip().splitlines()
            text = lines[-1] if lines else ""
        ended = "" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
        return ": ".join(part for part in (ended, text[:200]) if part)
