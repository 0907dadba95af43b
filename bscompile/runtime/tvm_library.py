"""The TVM runtime without the TVM compiler: its libraries, its threads, a loaded executable.

Importing the tvm package costs seconds and hundreds of megabytes, so only its runtime library is
opened here. In a process that has imported tvm already the same library is there, and it is used.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from bscompile.devices.cpu import available_threads
from bscompile.errors import ArtifactError, TargetError, UsageError

CPU_DEVICE = (1, 0, 2)  # kDLCPU, device 0, pooled allocator
_AFFINITY_BIG_CORES = 1

_import_lock = threading.Lock()
_supply_lock = threading.Lock()


@cache
def load_ffi() -> Any:
    """The tvm_ffi module with the TVM runtime library loaded into the process.

    Raises:
        TargetError: the runtime is not installed, or its libraries cannot be loaded.
    """
    # TVM reads these when a calling thread's pool starts. What the user has set stays.
    for name, value in {
        "TVM_NUM_THREADS": str(available_threads()),  # at most one worker per processor
        "TVM_BIND_THREADS": "0",  # bound to cores, they wait for whatever else runs there
        # Idle workers yield this often before they sleep: milliseconds, which spans the gaps
        # within a call. TVM's own 300000 burns a core for a tenth of a second after each call
        # and holds up the end of every thread that made one.
        "TVM_THREAD_POOL_SPIN_COUNT": "10000",
    }.items():
        os.environ.setdefault(name, value)
    with _import_lock:
        ffi = _import_without_torch("tvm_ffi", hint="pip install apache-tvm-ffi")
    package = importlib.util.find_spec("tvm")  # finds the folder, imports nothing
    if package is None or package.origin is None:
        raise TargetError("the TVM runtime is not installed", hint="pip install apache-tvm")
    folder = Path(package.origin).parent / "lib"
    for name in ("libtvm_runtime.so", "libtvm_runtime_extra.so"):  # extra: sort, random
        try:
            ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise TargetError(f"the TVM runtime cannot be loaded: {error}") from error
    return ffi


def import_compiler() -> None:
    """Import tvm, for those who compile: in a third of the time that it takes with torch.

    Raises:
        TargetError: tvm is not installed.
    """
    with _import_lock:
        for name in ("tvm", "tvm.relax"):
            _import_without_torch(name, hint="pip install apache-tvm")


def _import_without_torch(name: str, hint: str) -> Any:
    """Import a module but not torch, which tvm and tvm_ffi import wherever it is installed.

    None in sys.modules is Python's own way to say that a module shall not be found.
    """
    hide = "torch" not in sys.modules and name not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TargetError(f"{name.partition('.')[0]} is not installed", hint=hint) from error
    finally:
        if hide:
            del sys.modules["torch"]


def use_threads(count: int) -> int:
    """Let the calling thread's parallel regions use ``count`` workers.

    TVM keeps a pool per calling thread and sizes it once, so a thread that ran TVM code before
    this module was loaded may have fewer.

    Returns:
        The number in use.

    Raises:
        UsageError: this process was forked from one that had loaded the runtime; its workers
            stayed behind, and a call would wait for them for ever.
    """
    configure, number, home = _thread_functions()
    if home != os.getpid():
        raise UsageError(
            "this process was forked after a model was loaded, and the threads are in its parent",
            hint="use the start method 'spawn' or 'forkserver', or load only in the child",
        )
    if number() != count:
        configure(_AFFINITY_BIG_CORES, count)
    return int(number())


@cache
def _thread_functions() -> tuple[Any, Any, int]:
    ffi = load_ffi()
    names = ("runtime.config_threadpool", "runtime.NumThreads")
    configure, number = (ffi.get_global_func(name) for name in names)
    return configure, number, os.getpid()


class Executable:
    """Compiled code, loaded into the process.

    Args:
        code: A shared library with a Relax executable.
        devices: Type, number and allocator of each device that it uses, the host's last.
        supply: Loaded module -> name -> function, for those that the code calls and lacks.
    """

    def __init__(
        self,
        code: bytes,
        devices: tuple[int, ...] = CPU_DEVICE,
        supply: Callable[[Any], Mapping[str, Any]] = lambda module: {},
    ) -> None:
        ffi = load_ffi()
        self._devices, self._supply = devices, supply
        # A folder of mode 0700 that is gone once the library is mapped.
        with tempfile.TemporaryDirectory(prefix="bscompile-") as folder:
            path = Path(folder) / "model.so"
            path.write_bytes(code)
            try:
                self._module = ffi.load_module(str(path))
                self.machine()
            except (RuntimeError, AttributeError, ValueError, OSError) as error:
                reason = str(error).strip().split("\n")[-1]
                raise ArtifactError(f"its code cannot be loaded: {reason}") from error

    def machine(self) -> Any:
        """A new virtual machine with its own state that runs this code."""
        with _supplied(self._supply(self._module)):
            vm = self._module["vm_load_executable"]()
            vm["vm_initialization"](*self._devices)
        return vm


@contextmanager
def _supplied(functions: Mapping[str, Any]) -> Iterator[None]:
    """Global functions while a virtual machine looks for what it calls; it keeps what it finds."""
    ffi = load_ffi()
    with _supply_lock if functions else nullcontext():
        for name, function in functions.items():
            ffi.register_global_func(name, function, override=True)
        try:
            yield
        finally:
            for name in functions:
                ffi.remove_global_func(name)


def bind(vm: Any, entry: str, params: Sequence[Any]) -> Any:
    """The function ``entry`` with its last arguments fixed to ``params``."""
    vm["save_function"](entry, "bscompile_bound", True, *params)
    return vm["bscompile_bound"]
