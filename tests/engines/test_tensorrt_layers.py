"""What the engine inspector says of a plan's layers, in the two forms that its versions have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mimicmotion_trt import EngineError
from mimicmotion_trt.engines.tensorrt_backend import read_layers


def layer(name: str, kind: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": [], "Outputs": list(outputs)}


OLD_WIDE = {"Name": "t", "Dimensions": [1, 8], "Format/Datatype": "Row major linear FP32"}
OLD_HALF = {
    "Name": "t",
    "Dimensions": [1, 8],
    "Format/Datatype": "Channel major FP16 format where C % 8 == 0",
}
WIDE = {"Name": "t", "Dimensions": [1, 8], "Format": "Row-Major", "Datatype": "Float"}
HALF = {"Name": "t", "Dimensions": [1, 8], "Format": "Row-Major", "Datatype": "Half"}


@pytest.mark.parametrize(("half", "wide"), [(OLD_HALF, OLD_WIDE), (HALF, WIDE)])
def test_layers_are_counted_by_kind_and_those_in_float32_named(half, wide):
    told = {
        "Layers": [
            layer("gemm 1", "gemm", half),
            layer("gemm 2", "gemm", half),
            layer("norm", "kgen", wide),
            layer("both", "kgen", half, wide),
            layer("signal", "signal"),
        ],
        "Bindings": ["x", "y"],
    }
    layers = read_layers(json.dumps(told))
    assert layers.kinds == {"gemm": 2, "kgen": 2, "signal": 1}
    assert layers.count == 5
    assert layers.wide == ("norm",)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"Layers": ["only a name"]}', '{"Layers": [{"Name": "a"}]}', "[1]"]
)
def test_another_answer_is_an_error(text):
    with pytest.raises(EngineError, match="not understood"):
        read_layers(text)
