"""TensorRT on a stand-in: TensorRT-RTX behind an interface that, as TensorRT's, compiles for the GPU here."""

from __future__ import annotations

from typing import Any

from mimicmotion_trt.engines.tensorrt_library import Library, open_library


class Builder:
    """Compiles for SM89 without being told, as if that were the GPU of this machine."""

    def __init__(self, real: Any, api: Any) -> None:
        self._real, self._api = real, api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        assert config.num_compute_capabilities == 0  # TensorRT has no such word
        config.num_compute_capabilities = 1
        config.set_compute_capability(self._api.ComputeCapability.SM89, 0)
        return self._real.build_serialized_network(network, config)


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
        return Builder(self._real.Builder(logger), self._real)


def open_full_stand_in() -> Library:
    """`tensorrt 11.4.0.106`."""
    real = open_library("tensorrt-rtx")
    return Library("tensorrt", Api(real.api), real.logger, real.messages)
