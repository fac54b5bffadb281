"""Errors as google.rpc.Status and back: the same classes on both sides of the wire."""

from __future__ import annotations

import re
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from .. import errors
from . import faults

DOMAIN = "mimicmotion.v1"
DETAILS_KEY = "grpc-status-details-bin"
_MOST = {"message": 600, "remedy": 400, "field": 120}  # characters: all metadata has to fit into 8 KiB

_CODES: dict[type[errors.MimicMotionError], int] = {
    errors.InputError: code_pb2.INVALID_ARGUMENT,
    errors.BundleError: code_pb2.FAILED_PRECONDITION,
    errors.CheckpointError: code_pb2.FAILED_PRECONDITION,
    errors.Cancelled: code_pb2.CANCELLED,
    faults.NotFound: code_pb2.NOT_FOUND,
    faults.KeyReused: code_pb2.ALREADY_EXISTS,
    faults.Late: code_pb2.DEADLINE_EXCEEDED,
    faults.Busy: code_pb2.RESOURCE_EXHAUSTED,
    errors.ServiceError: code_pb2.UNAVAILABLE,
    errors.MimicMotionError: code_pb2.INTERNAL,
}
_CLASSES: dict[str, type[errors.MimicMotionError]] = {}


def reason(error: errors.MimicMotionError) -> str:
    """The class name in upper snake case: `SettingsError` is `SETTINGS_ERROR`."""
    return _reason(type(error))


def code(error: errors.MimicMotionError) -> int:
    """The google.rpc.Code of the nearest class that has one."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def to_status(error: errors.MimicMotionError) -> status_pb2.Status:
    """`error` with ErrorInfo, BadRequest where one input is at fault, RetryInfo where waiting helps."""
    texts = texts_of(error)
    status = status_pb2.Status(code=code(error), message=f"{texts['message']} {texts['remedy']}".strip())
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=reason(error), domain=DOMAIN, metadata=texts)
    )
    if error.field and isinstance(error, errors.InputError):
        request = error_details_pb2.BadRequest()
        request.field_violations.add(field=texts["field"], description=status.message)
        status.details.add().Pack(request)
    if isinstance(error, faults.Refused):
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def texts_of(error: errors.MimicMotionError) -> dict[str, str]:
    """Message, remedy and field, cut to what a call can carry."""
    return {name: getattr(error, name)[:most] for name, most in _MOST.items()}


async def abort(context: grpc.aio.ServicerContext[object, object], error: errors.MimicMotionError) -> None:
    """End a call with `error`; never returns."""
    status = to_status(error)
    code_of = {member.value[0]: member for member in grpc.StatusCode}
    await context.abort(code_of[status.code], status.message, ((DETAILS_KEY, status.SerializeToString()),))


def from_rpc_error(error: grpc.RpcError) -> errors.MimicMotionError:
    """The error that the server meant; a `ServiceError` where the call itself failed."""
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == DETAILS_KEY:
            status = status_pb2.Status()
            status.ParseFromString(value)
            return from_status(status)
    kind, text = error.code(), error.details() or "no details"
    if kind is grpc.StatusCode.CANCELLED:
        return errors.Cancelled("The call was cancelled.")
    if kind is grpc.StatusCode.DEADLINE_EXCEEDED:
        return faults.Late("The call took longer than its timeout.", remedy="Allow more time.")
    if kind is grpc.StatusCode.UNAVAILABLE:
        return errors.ServiceError(
            f"The server cannot be reached or went away: {text}.",
            remedy="Check its address and whether it runs.",
        )
    return errors.ServiceError(f"The server answered {kind.name}: {text}.")


def from_status(status: status_pb2.Status) -> errors.MimicMotionError:
    """Rebuild what `to_status` packed."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    kind = class_of(info.reason) or errors.ServiceError
    texts = info.metadata
    rebuilt = kind(texts["message"] or status.message, remedy=texts["remedy"], field=texts["field"])
    if isinstance(rebuilt, faults.Refused):
        rebuilt.retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return rebuilt


def _reason(kind: type[errors.MimicMotionError]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()


def class_of(name: str) -> type[errors.MimicMotionError] | None:
    """The class whose `reason` is `name`."""
    return _classes().get(name)


def _classes() -> dict[str, type[errors.MimicMotionError]]:
    if not _CLASSES:
        for module in (errors, faults):
            for kind in vars(module).values():
                if isinstance(kind, type) and issubclass(kind, errors.MimicMotionError):
                    _CLASSES[_reason(kind)] = kind
    return _CLASSES
