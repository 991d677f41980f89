"""The C code of this package, compiled on first use and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from cadyq.utils.errors import UserError
from cadyq.utils.extras import needs
from cadyq.utils.files import replacing

SOURCE = Path(__file__).with_name("bit_serial.c")
DECLARATIONS = """
int instruction_set(int set);
void quantize(int set, const float *x, ptrdiff_t count, float divisor, float factor, float least, float most,
              float *values);
void deviations(int set, const float *x, ptrdiff_t pixels, int channels, double *deviations);
int largest_logit(int set, const float *x, ptrdiff_t pixels, int channels, const float *gradient, const double *weight,
                  const double *bias, int candidates, double floor);
int pack(int set, const float *x, int height, int width, int channels, int pad, float divisor, float factor,
         float least, float most, int zero, int bits, uint64_t *planes, float *values);
int convolve(int set, const uint64_t *planes, int act_bits, int act_signed, int height, int width, int channels,
             int pad, const uint64_t *weights, int weight_bits, int kernel, int outputs, int first_row, int end_row,
             const int32_t *shift, const float *scale, const float *bias, void *out);
"""
# no fused multiply-add: every instruction set rounds as the simulation does
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno")
PLATFORM_FLAGS = {"Darwin": ("-undefined", "dynamic_lookup")}  # extension modules find Python's symbols when loaded
INSTRUCTION_SETS = ("c", "avx2", "avx512")  # as the C code numbers them, from slow to fast
REMEDY = "install gcc or clang and Python's C headers (python3-dev), or name a compiler in the variable CC"


def cache_folder() -> Path:
    """Where compiled code is kept: cadyq/kernels in XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cadyq" / "kernels"


def compiler() -> list[str]:
    """The command of the C compiler, with its own flags: the variable CC, or what Python was built with."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


@cache
def library() -> Any:
    """The functions of `bit_serial.c`, with `ffi` beside them: an extension module made by cffi.

    Raises:
        UserError: cffi is not installed, or the C code cannot be compiled.
    """
    with needs("kernels", "the C code of cadyq.kernels"):
        import cffi
    command = [*compiler(), *FLAGS, *PLATFORM_FLAGS.get(platform.system(), ()), f"-I{sysconfig.get_path('include')}"]
    key = _key(command, cffi.__version__)
    path = cache_folder() / f"_bit_serial_{key}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.is_file():
        ffi = cffi.FFI()
        ffi.cdef(DECLARATIONS)
        ffi.set_source(f"_bit_serial_{key}", SOURCE.read_text(), compiler_verbose=0)
        _compile(ffi, command, path)
    return _load(path, f"_bit_serial_{key}")


@cache
def instruction_sets() -> tuple[str, ...]:
    """Those of `INSTRUCTION_SETS` that this CPU has, from slow to fast."""
    functions = library().lib
    return tuple(name for number, name in enumerate(INSTRUCTION_SETS) if functions.instruction_set(number))


def _key(command: list[str], cffi_version: str) -> str:
    """A hash of everything that determines the compiled code."""
    parts = [SOURCE.read_text(), DECLARATIONS, " ".join(command), _run([command[0], "--version"])]
    parts += [sys.version, platform.machine(), cffi_version]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(ffi: Any, command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, replacing(path) as made:
        code = Path(folder) / "bit_serial_module.c"
        ffi.emit_c_code(str(code))
        _run([*command, str(code), "-o", str(made)])


def _run(command: list[str]) -> str:
    """What a compiler prints.

    Raises:
        UserError: it is not there, or ends with an error.
    """
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except OSError as error:
        raise UserError(f"no C compiler {command[0]!r} ({error.strerror}); {REMEDY}") from error
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in error.stderr.splitlines() if "error" in line]
        reason = lines[0][:200] if lines else f"exit status {error.returncode}"
        raise UserError(f"{SOURCE.name}: {command[0]} cannot compile it ({reason}); {REMEDY}") from error


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UserError(f"{path}: cannot be loaded ({error}); delete it, and it is compiled again") from error
    return module
