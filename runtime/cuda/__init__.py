"""The fused kernels: their source, how they are compiled, and what they are launched with."""

from ..engines.cuda_device import Launch
from .compiler import compile_kernels
from .launches import KERNELS, Tables, branches_of, make_tables, step_numbers

__all__ = ["KERNELS", "Launch", "Tables", "branches_of", "compile_kernels", "make_tables", "step_numbers"]
