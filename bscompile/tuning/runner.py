"""Where kernels run: in this process, or on a device behind a TVM RPC tracker."""

from __future__ import annotations

import socket
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bscompile.errors import TargetError, UsageError

_CONNECT_SECONDS = 5.0  # TVM itself would try for a minute


class Session(ABC):
    """A connection to one device."""

    @abstractmethod
    def load(self, executable: Any) -> tuple[Any, Any]:
        """Bring compiled code to the device.

        Args:
            executable: A tvm.runtime.Executable.

        Returns:
            (tvm.runtime.Module, tvm.runtime.Device) to call it and to keep its arrays on.
        """


class Runner(ABC):
    """Knows how to reach a device. Pickled, into the worker process."""

    @abstractmethod
    def connect(self, device: str) -> Session:
        """A session for candidates that are timed in turns; ``device`` is TVM's name of it."""

    def check(self) -> None:  # noqa: B027  # there is always something to run on here
        """Find out early whether there is a device at all.

        Raises:
            TargetError: there is none.
        """


class LocalSession(Session):
    """This machine."""

    def __init__(self, device: str) -> None:
        self._device = device

    def load(self, executable: Any) -> tuple[Any, Any]:
        """Load code into this process."""
        import tvm

        return executable.jit(), tvm.device(self._device or "cpu")


@dataclass(frozen=True)
class LocalRunner(Runner):
    """This machine."""

    def connect(self, device: str) -> Session:
        """Nothing needs connecting."""
        return LocalSession(device)


class RpcSession(Session):
    """A device that a tracker has lent."""

    def __init__(self, session: Any, device: str) -> None:
        self._session, self._device, self._count = session, device, 0

    def load(self, executable: Any) -> tuple[Any, Any]:
        """Send the code over as a shared library."""
        self._count += 1
        name = f"kernel{self._count}.so"
        with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
            path = Path(folder) / name
            executable.export_library(str(path))
            self._session.upload(str(path))
        return self._session.load_module(name), self._session.device(self._device)


@dataclass(frozen=True)
class RpcRunner(Runner):
    """One of the devices that a tracker lends under a key.

    Each session is a fresh process on the device, so that a kernel that crashes harms no other.

    Attributes:
        host: Of the tracker.
        port: Of the tracker.
        key: What the devices registered as.
        session_seconds: The device ends a session after that, so that a kernel that hangs does
            not keep it.
    """

    host: str
    port: int
    key: str
    session_seconds: int = 60

    def connect(self, device: str) -> Session:
        """Wait until a device is free, and take it."""
        self._reach()
        tracker = self._tracker()
        session = tracker.request(self.key, session_timeout=self.session_seconds)
        return RpcSession(session, device)

    def check(self) -> None:
        """Ask the tracker what it has.

        Raises:
            TargetError: the tracker does not answer, or has no device of that key.
        """
        self._reach()
        servers = self._tracker().summary()["server_info"]
        keys = sorted({str(server["key"]).removeprefix("server:") for server in servers})
        if self.key not in keys:
            known = ", ".join(keys) or "none"
            raise TargetError(
                f"the tracker at {self.host}:{self.port} has no device under {self.key!r}",
                f"it has {known}",
            )

    def _reach(self) -> None:
        try:
            socket.create_connection((self.host, self.port), _CONNECT_SECONDS).close()
        except OSError as error:
            raise TargetError(
                f"no RPC tracker answers at {self.host}:{self.port}",
                "start one with python -m tvm.exec.rpc_tracker",
            ) from error

    def _tracker(self) -> Any:
        from tvm import rpc

        return rpc.connect_tracker(self.host, self.port)


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
