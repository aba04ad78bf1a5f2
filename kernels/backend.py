"""Which implementation of a kernel runs: the torch reference, the compiled reference, or Triton."""

import functools
import itertools
import shutil
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

try:
    import triton
    import triton.language

    HAS_TRITON = True
    INTERPRETED: bool = triton.knobs.runtime.interpret  # read here, when kernels are defined
    tl: Any = triton.language
except ImportError:  # no Triton for this platform: the kernels are defined and never launched
    HAS_TRITON = INTERPRETED = False
    tl = SimpleNamespace(constexpr=None)


def jit(kernel: Callable[..., Any]) -> Any:
    """`triton.jit`, or the kernel as it is where Triton is missing."""
    return triton.jit(kernel) if HAS_TRITON else kernel


Backend = Literal["auto", "reference", "compile", "triton"]


def check_backend(backend: str) -> None:
    """Refuses a name that is no backend, and one that this machine lacks.

    Raises:
        ValueError: The name is unknown, or Triton or a C++ compiler is not installed.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend: {backend!r} is none of {', '.join(get_args(Backend))}")
    if backend == "triton" and not HAS_TRITON:
        raise ValueError("backend: triton is not installed; use auto, reference or compile")
    if backend == "compile" and not has_compiler():
        raise ValueError("backend: compile needs a C++ compiler (g++); use auto or reference")


def check_uncompiled_backend(backend: str, subject: str) -> None:
    """Refuses what `check_backend` does, and "compile".

    Raises:
        ValueError: The name is unknown, not offered for this subject, or Triton is missing.
    """
    if backend == "compile":
        raise ValueError(
            f"backend: compile is not offered for {subject}, where it hardly gains; use auto,"
            " reference or triton"
        )
    check_backend(backend)


def uses_triton(x: Tensor, backend: str) -> bool:
    """Whether Triton runs on this tensor: on CUDA devices, unless another backend is asked for.

    Raises:
        ValueError: Triton is asked for on another device, outside of its interpreter.
    """
    if backend == "triton" and not (x.is_cuda or INTERPRETED):
        raise ValueError(
            f"backend: triton needs a CUDA device, not {x.device.type}; use auto, or set"
            " TRITON_INTERPRET=1 before tenfold is imported"
        )
    return backend == "triton" or (backend == "auto" and HAS_TRITON and x.is_cuda)


@functools.cache
def has_compiler() -> bool:
    """Whether `torch.compile` finds a C++ compiler for CPU code."""
    # Private, because torch tells nobody which compiler it would call; the kernel tests, which ask
    # for the compiled backend, notice when it moves.
    from torch._inductor.config import cpp

    names = cpp.cxx if isinstance(cpp.cxx, (tuple, list)) else (cpp.cxx,)
    return any(name and shutil.which(name) for name in names)


def uses_compiler(x: Tensor, backend: str, min_elements: int) -> bool:
    """Whether the compiled reference runs on this tensor: on large CPU tensors, or when asked for.

    Args:
        x: The tensor to work on.
        backend: What the user asked for.
        min_elements: Size from which compiled code is faster than eager, compilation apart.
    """
    if backend == "compile":
        return True
    large = x.device.type == "cpu" and x.numel() >= min_elements
    return backend == "auto" and large and has_compiler()


def compiled(reference: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """Compiles a reference with fixed settings for any number of rows of its first argument.

    Compilation happens on the first call, and once more for another dtype or number of dimensions.
    """

    def call(*tensors: Tensor | None) -> Any:
        return reference(*tensors, **settings)

    # A code object of its own: the compiler counts recompilations per code object, and takes sizes
    # that differ between calls of one name for dynamic ones.
    code = call.__code__.replace(co_name=f"{reference.__name__}_{next(_numbers)}")
    fast = torch.compile(FunctionType(code, call.__globals__, closure=call.__closure__))

    def call_compiled(first: Tensor, *others: Tensor | None) -> Any:
        # Documented by torch, though private by name: one compilation instead of one per size.
        torch._dynamo.maybe_mark_dynamic(first, 0)
        with torch.no_grad():
            return fast(first, *others)

    return call_compiled


_numbers = itertools.count()
