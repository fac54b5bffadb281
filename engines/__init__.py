"""Engines: what a network is once it is built, and the backends that run it."""

from .backend import Call, Engine, Placement, open_engine
from .bundle import Accuracy, Bundle, File, FlopModel, GraphStats, ImageStatistics, Manifest, Network
from .spec import (
    FEATURE_CACHE_NETWORKS,
    NETWORKS,
    Array,
    EnginePlan,
    EngineSpec,
    Profile,
    TensorSpec,
    call_sizes,
    network_specs,
)

__all__ = [
    "FEATURE_CACHE_NETWORKS",
    "NETWORKS",
    "Accuracy",
    "Array",
    "Bundle",
    "Call",
    "Engine",
    "EnginePlan",
    "EngineSpec",
    "File",
    "FlopModel",
    "GraphStats",
    "ImageStatistics",
    "Manifest",
    "Network",
    "Placement",
    "Profile",
    "TensorSpec",
    "call_sizes",
    "network_specs",
    "open_engine",
]
