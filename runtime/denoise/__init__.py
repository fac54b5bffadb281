"""Denoising: the plan of a clip, the numbers of each step, and the loop that runs both on a CPU.

Read `plan.py` first: a `DenoisePlan` is made once from the settings and a clip's shape. `loop.py` executes it with
numpy, `runtime/cuda/` on a GPU.
"""
