"""An engine against recorded answers, through polygraphy, whose runner is the engine that will serve."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from ..engines import Array, Engine, EngineSpec
from ..errors import ExportError


@dataclass(frozen=True)
class Deviation:
    """How far one answer of an engine is from what was expected, and whether that is near enough."""

    max_abs: float
    """Largest absolute difference."""
    rel_l2: float
    """L2 norm of the difference over `norm`."""
    norm: float
    """L2 norm of what was expected."""
    bound: float
    """Largest `rel_l2` allowed."""

    def __bool__(self) -> bool:
        return self.rel_l2 <= self.bound  # a NaN does not agree


class EngineRunner(BaseRunner):  # type: ignore[misc]
    """An engine of any backend as polygraphy's runner, bound as the runtime binds it; who opened it closes it."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(name=name)
        self._engine = engine

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, dtypes and shapes of the inputs; a free size is None."""
        metadata = TensorMetadata()
        for tensor in self._engine.spec.inputs:
            shape = [None if isinstance(dim, str) else dim for dim in tensor.shape]
            metadata.add(tensor.name, np.dtype(tensor.dtype), shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """The answers to one call, each in an array of its own."""
        outputs = make_outputs(self._engine.spec, feed_dict)
        call = self._engine.bind(feed_dict, outputs)
        start = time.perf_counter()
        call()
        self.inference_time = time.perf_counter() - start  # polygraphy warns of runners that do not tell
        return outputs


def compare_answers(
    engine: Engine,
    name: str,
    calls: Iterable[Mapping[str, Array]],
    expected: Sequence[Mapping[str, Array]],
    bound: float,
) -> list[Deviation]:
    """The deviations of an engine called `name`, one for each output of each call.

    `calls` are read one by one, and an answer is given up once it is compared. Raises `EngineError` if the engine
    cannot answer, `ExportError` if an answer has another shape than was expected.
    """
    recorded = [IterationResult(dict(answers), runtime=0.0, runner_name="PyTorch") for answers in expected]

    def compare(wanted: IterationResult, found: IterationResult) -> dict[str, Deviation]:
        return {output: measure(output, wanted[output], found[output], bound) for output in wanted}

    with G_LOGGER.verbosity(), np.errstate(over="ignore", invalid="ignore"):  # what is wrong is told by us
        answers = Comparator.run([EngineRunner(engine, name)], calls, streaming=True)
        runs = [RunResults([("PyTorch", recorded)]), answers]
        (result,) = Comparator.compare_accuracy(runs, compare_func=compare)
    return [deviation for found in result["PyTorch", name] for deviation in found.values()]


def measure(output: str, expected: Array, answer: Array, bound: float) -> Deviation:
    """The deviation of one answer, in float64."""
    if answer.shape != expected.shape:
        raise ExportError(f"{output} has the shape {answer.shape}, PyTorch's {expected.shape}.")
    difference = answer.astype(np.float64) - expected
    norm = float(np.linalg.norm(expected))
    rel_l2 = float(np.linalg.norm(difference)) / max(norm, 1e-12)
    return Deviation(float(np.abs(difference).max()), rel_l2, norm, bound)


def make_outputs(spec: EngineSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays for the answers to `inputs`; a cell of latents is 8x8 pixels."""
    sizes = {
        dim: size
        for tensor in spec.inputs
        for dim, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
    }
    for cells, pixels in (("latent_height", "height"), ("latent_width", "width")):
        if cells in sizes:
            sizes[pixels] = sizes[cells] * 8
        elif pixels in sizes:
            sizes[cells] = sizes[pixels] // 8
    return {
        tensor.name: np.empty([sizes[d] if isinstance(d, str) else d for d in tensor.shape], tensor.dtype)
        for tensor in spec.outputs
    }
