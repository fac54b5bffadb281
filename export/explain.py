"""Files that cannot be read or written, told as errors of the input that named them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..errors import MimicMotionError


@contextlib.contextmanager
def explained(kind: type[MimicMotionError], field: str, what: str) -> Iterator[None]:
    """Turn an OSError into an error of the input `field`."""
    try:
        yield
    except OSError as error:
        raise kind(
            f"{what}: {error}.", remedy="Check the name, the permissions and the free space.", field=field
        ) from error
