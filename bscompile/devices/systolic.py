"""The simulated systolic accelerator: its RTL and driver as one shared library, built once.

Verilator turns targets/systolic/rtl into C++; with targets/systolic/driver that becomes a library
which exports the driver's four functions. It is kept in the user's cache under a name that holds
a hash of the sources. A library of a vendor's own takes its place where the environment variable
BSCOMPILE_SYSTOLIC_DRIVER names one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from bscompile.errors import TargetError

#: Environment variable with the path of another driver.
DRIVER_VARIABLE = "BSCOMPILE_SYSTOLIC_DRIVER"
#: Sides of the arrays that there are; the first is the default.
SIZES = (16, 8, 32)
#: Rows of x that one run takes.
DEPTH = 256
#: A nominal clock. The RTL never saw a synthesis tool: seconds are cycles in other words.
CLOCK_HZ = 1e9

_TOOLS = {"verilator": "verilator", "g++": "g++", "make": "make"}  # program -> package
#: The folder that holds the RTL and the driver.
SOURCES = Path(__file__).parents[1] / "targets" / "systolic"


def missing_packages() -> list[str]:
    """What must be installed before a simulator can be built here."""
    return [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]


def open_driver(size: int) -> ctypes.CDLL:
    """The driver for an array of ``size`` x ``size``, its symbols open to compiled models.

    Raises:
        TargetError: the driver cannot be built, loaded or started.
    """
    path = os.environ.get(DRIVER_VARIABLE)
    return _open(Path(path) if path else build(size), size)


def stand_in() -> str:
    """What works in place of an array; empty where a driver of somebody's own was named."""
    return "" if os.environ.get(DRIVER_VARIABLE) else "a simulation of its RTL"


def symbol(size: int, name: str) -> str:
    """The driver's name of one of its four functions, or of ``cycles``."""
    return f"systolic{size}_{name}"


def cycles(size: int) -> int:
    """Cycles that arrays of that size have worked in this process.

    Raises:
        TargetError: the driver cannot be built, loaded or started.
    """
    driver = open_driver(size)
    return int(ctypes.c_uint64.in_dll(driver, symbol(size, "cycles")).value)


@cache
def _open(path: Path, size: int) -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        functions = [driver[symbol(size, name)] for name in ("open", "bind", "run", "wait")]
    except (OSError, AttributeError) as error:
        raise TargetError(f"{path}: not a driver of a {size}x{size} array: {error}") from error
    functions[3].restype = ctypes.c_int64
    if code := functions[0]():
        raise TargetError(f"{path}: the {size}x{size} array cannot be opened, error {code}")
    return driver


def build(size: int) -> Path:
    """The simulator's library; built unless the user's cache has it.

    Raises:
        TargetError: a tool is missing, or fails.
    """
    rtl, driver = sorted(SOURCES.glob("rtl/*.sv")), sorted(SOURCES.glob("driver/*"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (*rtl, *driver)))
    path = _cache_folder() / f"systolic{size}-{DEPTH}-{digest.hexdigest()[:16]}.so"
    if path.exists():
        return path
    if missing := missing_packages():
        raise TargetError(
            f"systolic: simulating the array needs {' and '.join(missing)}",
            f"apt-get install {' '.join(missing)}, or name a driver in {DRIVER_VARIABLE}",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its goal, so that the rename that publishes it is atomic.
        with tempfile.TemporaryDirectory(prefix=".systolic-", dir=path.parent) as folder:
            _verilate(Path(folder), size, rtl, driver)
            os.replace(Path(folder) / "driver.so", path)
    except OSError as error:
        raise TargetError(f"{path}: the simulator cannot be kept there: {error}") from error
    return path


def _verilate(folder: Path, size: int, rtl: list[Path], driver: list[Path]) -> None:
    sources = [*rtl, *(path for path in driver if path.suffix == ".cc")]
    include = driver[0].parent
    # Hidden symbols: simulators of several sizes share a process.
    flags = f"-O2 -fPIC -fvisibility=hidden -I{include}"
    defines = f"-DSYSTOLIC_SIZE={size} -DSYSTOLIC_DEPTH={DEPTH}"
    command = [
        *("verilator", "--cc", "--exe", "--build", "-j", "0", "-O3", "--top-module", "systolic"),
        *(f"-GSIZE={size}", f"-GDEPTH={DEPTH}", "--Mdir", str(folder)),
        *("-CFLAGS", f"{flags} {defines}", "-LDFLAGS", "-shared", "-o", "driver.so"),
        *map(str, sources),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "rror" in line]
        reason = lines[0].strip() if lines else f"exit code {done.returncode}"
        raise TargetError(f"systolic: the simulator cannot be built: {reason}")


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bscompile"
