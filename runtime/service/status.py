"""The errors that only a service has, and all errors as google.rpc.Status and back."""

from __future__ import annotations

import os
import re
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from .. import errors
from ..errors import BundleError, Cancelled, CheckpointError, InputError, MimicMotionError, ServiceError

DOMAIN = "mimicmotion.v1"
_MOST = {"message": 500, "remedy": 330, "field": 120}
"""Bytes of each text. All metadata of an answer has to fit into 8 KiB: `grpc-message` may be percent-encoded, three
bytes for one, and `grpc-status-details-bin` has message and remedy three times and the field twice, in base64."""
_PATH = re.compile(r"(?<![\w.:/~-])(?:~|\.{1,2})?/(?:[^\s/'\":,;()]+/)*(?=[^\s/'\":,;()])")
"""The folders in front of a file's name."""


class UploadError(InputError):
    """The upload breaks its rules: order, sizes, or chunks."""


class NotFound(ServiceError):  # noqa: N818 - read as the status it becomes
    """The job is not known, or not any more."""


class Unauthorized(ServiceError):  # noqa: N818
    """The call has no token, or one that the server does not know."""


class KeyReused(ServiceError):  # noqa: N818
    """The request_id belongs to another request."""


class Late(ServiceError):  # noqa: N818
    """The other side did not send or answer in time."""


class TooLate(ServiceError):  # noqa: N818
    """The job cannot be finished by its deadline, or still waited when that was over."""


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


class Kept(Draining):
    """The server is about to stop, and its next life goes on with the job."""


class Unreachable(ServiceError):  # noqa: N818
    """The server cannot be reached, or the connection to it broke."""


class EngineLost(Refused):
    """The engine process died under the job."""


def unknown_job(job_id: str) -> NotFound:
    """For a job that there is not, and for one that is not the caller's."""
    return NotFound(
        f"There is no job {job_id[:64]!r}.", remedy="It may have expired; create it again.", field="job"
    )


CODES: dict[type[MimicMotionError], int] = {
    InputError: code_pb2.INVALID_ARGUMENT,
    BundleError: code_pb2.FAILED_PRECONDITION,
    CheckpointError: code_pb2.FAILED_PRECONDITION,
    Cancelled: code_pb2.CANCELLED,
    NotFound: code_pb2.NOT_FOUND,
    Unauthorized: code_pb2.UNAUTHENTICATED,
    KeyReused: code_pb2.ALREADY_EXISTS,
    Late: code_pb2.DEADLINE_EXCEEDED,
    TooLate: code_pb2.DEADLINE_EXCEEDED,
    Busy: code_pb2.RESOURCE_EXHAUSTED,
    ServiceError: code_pb2.UNAVAILABLE,
    MimicMotionError: code_pb2.INTERNAL,
}
"""The google.rpc.Code of each class and of those below it that have no code of their own."""


def code(error: MimicMotionError) -> int:
    """The google.rpc.Code of the nearest class that has one."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def reason(kind: type[MimicMotionError]) -> str:
    """The class name in upper snake case: `SettingsError` is `SETTINGS_ERROR`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()


KINDS = {
    reason(kind): kind
    for kind in (*vars(errors).values(), *globals().values())
    if isinstance(kind, type) and issubclass(kind, MimicMotionError)
}
"""Every class by its reason. One that is not here is of a newer schema: a `ServiceError`."""


def to_status(error: MimicMotionError) -> status_pb2.Status:
    """`error` with ErrorInfo, BadRequest where one input is at fault, RetryInfo where waiting helps."""
    texts = texts_of(error)
    status = status_pb2.Status(code=code(error), message=f"{texts['message']} {texts['remedy']}".strip())
    info = error_details_pb2.ErrorInfo(reason=reason(type(error)), domain=DOMAIN, metadata=texts)
    status.details.add().Pack(info)
    if error.field and isinstance(error, InputError):
        request = error_details_pb2.BadRequest()
        request.field_violations.add(field=texts["field"], description=status.message)
        status.details.add().Pack(request)
    if isinstance(error, Refused):
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_status(status: status_pb2.Status) -> MimicMotionError:
    """Rebuild what `to_status` packed."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    texts = info.metadata
    kind = KINDS.get(info.reason, ServiceError)
    rebuilt = kind(texts["message"] or status.message, remedy=texts["remedy"], field=texts["field"])
    if isinstance(rebuilt, Refused):
        rebuilt.retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return rebuilt


def texts_of(error: MimicMotionError) -> dict[str, str]:
    """Message, remedy and field as clients get them: without this machine's folders, cut to what a call carries."""
    return {name: _cut(_PATH.sub("", getattr(error, name)), most) for name, most in _MOST.items()}


def _cut(text: str, most: int) -> str:
    """The beginning of a text in at most so many bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


async def abort(context: Any, error: MimicMotionError) -> NoReturn:
    """End a call with `error`."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("a call that is aborted does not go on")


def from_rpc_error(error: Any) -> MimicMotionError:
    """The error that the server meant by a `grpc.RpcError`; a `ServiceError` where the call itself failed."""
    if (status := rpc_status.from_call(error)) is not None:
        return from_status(status)
    kind, text = error.code(), error.details() or "no details"
    if kind is grpc.StatusCode.CANCELLED:
        return Cancelled("The call was cancelled.")
    if kind is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Late("The call took longer than its timeout.", remedy="Allow more time.")
    if kind is grpc.StatusCode.UNAVAILABLE:
        return Unreachable(
            f"The server cannot be reached or went away: {text}.",
            remedy=f"Check its address, whether it runs, and whether it speaks TLS{named_proxy()}.",
        )
    return ServiceError(f"The server answered {kind.name}: {text}.")


def named_proxy() -> str:
    """What to add to a remedy where a proxy of the environment may be in the way."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        if value := os.environ.get(name):
            return f"; {name} sends calls through {value}, which no_proxy can prevent"
    return ""
