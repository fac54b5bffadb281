"""From recordings of people to a training set: found, posed, cut, judged, packed into shards, and read again."""

from ..data.shards import ShardClips, open_clips

__all__ = ["ShardClips", "open_clips"]
