"""Faults that only a service has, each with the status it gets on the wire."""

from __future__ import annotations

from ..errors import InputError, ServiceError


class UploadError(InputError):
    """The upload breaks its rules: order, sizes, or chunks."""


class NotFound(ServiceError):  # noqa: N818 - read as the status it becomes
    """The job is not known, or not any more."""


class KeyReused(ServiceError):  # noqa: N818
    """The request_id belongs to another request."""


class Late(ServiceError):  # noqa: N818
    """The other side did not send or answer in time."""


class Refused(ServiceError):  # noqa: N818
    """The server cannot take or finish the job now; `retry_after` seconds later it may."""

    def __init__(
        self, message: str, *, remedy: str = "Try again later.", field: str = "", retry_after: float = 1.0
    ) -> None:
        super().__init__(message, remedy=remedy, field=field)
        self.retry_after = retry_after


class Busy(Refused):
    """The queue is full."""


class NotReady(Refused):
    """No engine is warm yet, or none is left."""


class Draining(Refused):
    """The server is about to stop."""


class EngineLost(Refused):
    """The engine process died under the job."""
