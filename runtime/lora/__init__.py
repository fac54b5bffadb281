"""LoRAs: the files, and the U-Nets that run with them."""

from .files import NO_LORAS, Choice, LoraFile, Loras
from .unets import Unets

__all__ = ["NO_LORAS", "Choice", "LoraFile", "Loras", "Unets"]
