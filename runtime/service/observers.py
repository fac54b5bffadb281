"""Who is told what happens on a server: the log, metrics, traces."""

from __future__ import annotations

from ..errors import MimicMotionError
from ..events import Event
from .engine_process import EngineProcess, guarded
from .jobs import StoredJob
from .tokens import Caller


class Observer:
    """Is told on the event loop what happens, and does nothing; others override what they care for."""

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """`code` is a name such as OK."""

    def call_failed(self, method: str, who: Caller, error: MimicMotionError) -> None:
        """The error that a call is answered with."""

    def accepted(self, job: StoredJob, who: Caller) -> None:
        """A job's upload is complete."""

    def happened(self, job: StoredJob, event: Event) -> None:
        """An engine reported something about a job."""

    def ended(self, job: StoredJob) -> None:
        """However it ended; the job knows."""

    def engine_lost(self, engine: EngineProcess, exit_code: int | None) -> None:
        """Its process ended unasked, or could not be started."""

    def close(self) -> None:
        """Nothing more will happen."""


class Observers(Observer):
    """Tells several. What they raise goes to the loop's exception handler, and the work goes on."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        for observer in self._observers:
            guarded(observer.call_ended, method, code, seconds)

    def call_failed(self, method: str, who: Caller, error: MimicMotionError) -> None:
        for observer in self._observers:
            guarded(observer.call_failed, method, who, error)

    def accepted(self, job: StoredJob, who: Caller) -> None:
        for observer in self._observers:
            guarded(observer.accepted, job, who)

    def happened(self, job: StoredJob, event: Event) -> None:
        for observer in self._observers:
            guarded(observer.happened, job, event)

    def ended(self, job: StoredJob) -> None:
        for observer in self._observers:
            guarded(observer.ended, job)

    def engine_lost(self, engine: EngineProcess, exit_code: int | None) -> None:
        for observer in self._observers:
            guarded(observer.engine_lost, engine, exit_code)

    def close(self) -> None:
        for observer in self._observers:
            observer.close()
