"""Engines: what a network is once it is built, and the backends that run it."""

from .audit import Audit
from .backend import Call, Engine, open_engine
from .bundle import Agreement, Bundle, File, ImageStatistics, Manifest, Network
from .plan import Plan, Profile
from .spec import DEEP_CACHE, NETWORKS, Array, EngineSpec, TensorSpec, network_specs
from .work import Work

__all__ = [
    "DEEP_CACHE",
    "NETWORKS",
    "Agreement",
    "Array",
    "Audit",
    "Bundle",
    "Call",
    "Engine",
    "EngineSpec",
    "File",
    "ImageStatistics",
    "Manifest",
    "Network",
    "Plan",
    "Profile",
    "TensorSpec",
    "Work",
    "network_specs",
    "open_engine",
]
