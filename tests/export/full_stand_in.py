"""TensorRT on a stand-in: TensorRT-RTX's parser and config behind TensorRT's interface, and a compiler of nothing."""

from __future__ import annotations

from typing import Any

from mimicmotion_trt.engines.tensorrt_library import Library, open_library


class Builder:
    """Parses and takes options as the real one does; what it compiles is no plan, only bytes."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        assert network.num_layers > 0
        assert config.num_optimization_profiles > 0
        assert config.num_compute_capabilities == 0  # TensorRT has no such word
        return b"plan"


class Api:
    """The module `tensorrt`."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.__version__ = "11.4.0.106"

    def __getattr__(self, name: str) -> Any:
        if name in ("ComputeCapability", "EngineValidity"):
            raise AttributeError(name)
        return getattr(self._real, name)

    def Builder(self, logger: Any) -> Builder:  # noqa: N802
        return Builder(self._real.Builder(logger))


def open_full_stand_in() -> Library:
    """`tensorrt 11.4.0.106`."""
    real = open_library("tensorrt-rtx")
    return Library("tensorrt", Api(real.api), real.logger, real.messages)
