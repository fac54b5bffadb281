"""Denoising and decoding on a GPU: the fused kernels, the captured step, and who shares it.

Read `kernels.cu` and `launches.py` first, then `program.py`: `StepProgram` executes a `DenoisePlan` with one captured
graph a step.
"""
