"""Where kernels run: in this process, or on a device behind a TVM RPC tracker."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bscompile.errors import UsageError


class Runner(ABC):
    """Brings compiled code to a device. Pickled once, into the worker process."""

    @abstractmethod
    def load(self, executable: Any, device: str) -> tuple[Any, Any]:
        """Load code.

        Args:
            executable: A tvm.runtime.Executable.
            device: TVM's name of the device.

        Returns:
            (tvm.runtime.Module, tvm.runtime.Device) to call it and to keep its arrays on.
        """


@dataclass(frozen=True)
class LocalRunner(Runner):
    """This machine."""

    def load(self, executable: Any, device: str) -> tuple[Any, Any]:
        """Load code into this process."""
        import tvm

        return executable.jit(), tvm.device(device)


@dataclass(frozen=True)
class RpcRunner(Runner):
    """One of the devices that a tracker lends under a key.

    Attributes:
        host: Of the tracker.
        port: Of the tracker.
        key: What the devices registered as.
        session_seconds: The server ends a session after that, so that a kernel that hangs does
            not keep its device.
    """

    host: str
    port: int
    key: str
    session_seconds: int = 60

    def load(self, executable: Any, device: str) -> tuple[Any, Any]:
        """Send the code over; each candidate gets a session, and with it a fresh process."""
        from tvm import rpc

        tracker = rpc.connect_tracker(self.host, self.port)
        session = tracker.request(self.key, session_timeout=self.session_seconds)
        with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
            path = Path(folder) / "kernel.so"
            executable.export_library(str(path))
            session.upload(str(path))
        return session.load_module(path.name), session.device(device)


def parse_tracker(tracker: str | None, key: str | None) -> RpcRunner | None:
    """``("host:9190", "board")`` -> a runner; None where no tracker is named.

    Raises:
        UsageError: not ``host:port``, or a tracker without a key.
    """
    if tracker is None:
        return None
    host, _, port = tracker.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise UsageError(f"--rpc {tracker}: HOST:PORT of the tracker is wanted")
    if not key:
        raise UsageError("--rpc needs --key, under which the tracker lends the devices")
    return RpcRunner(host, int(port), key)
