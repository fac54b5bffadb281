"""The fused kernels: their source, how they are compiled, and what they are launched with."""

from .compiler import compile_kernels
from .launches import KERNELS, Launch, Tables, branches_of, make_tables, step_numbers

__all__ = ["KERNELS", "Launch", "Tables", "branches_of", "compile_kernels", "make_tables", "step_numbers"]
