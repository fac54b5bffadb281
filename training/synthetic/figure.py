"""A whole person as parts to paint."""

from __future__ import annotations

from .character import Character
from .fingers import hand_parts
from .limbs import arm_parts, leg_parts
from .portrait import head_parts
from .shapes import Part, Shade
from .skeleton import LEFT, RIGHT
from .trunk import trunk_parts
from .view import View


def figure_parts(view: View, character: Character) -> list[Part]:
    """Every part of the person, in no order: they are painted by depth, frame by frame."""
    light = character.light
    shade = Shade((0.8 * light.side, -0.6), light.contrast)
    parts = [*trunk_parts(view, character, shade), *head_parts(view, character, shade)]
    for side in (LEFT, RIGHT):
        parts += leg_parts(view, character, shade, side)
        parts += arm_parts(view, character, shade, side)
        parts += hand_parts(view, character, shade, side)
    return parts
