"""Poses: keypoints of one person over time, found in pictures, fitted to another person, and drawn."""

from .draw import draw_poses, iter_pose_pictures
from .estimate import PoseEstimator, estimate_poses, open_estimator
from .rescale import rescale_to_reference
from .sequence import PoseSequence

__all__ = [
    "PoseEstimator",
    "PoseSequence",
    "draw_poses",
    "estimate_poses",
    "iter_pose_pictures",
    "open_estimator",
    "rescale_to_reference",
]
