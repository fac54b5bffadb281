"""Commands as a user types them, run in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from mimicmotion_trt.cli import app

Command = Callable[..., Result]


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs `mimicmotion-trt WORDS…` and checks its exit code; nothing ends with a traceback."""

    def run(*words: object, code: int | None = 0) -> Result:
        done = CliRunner().invoke(app, [*map(str, words)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert code is None or done.exit_code == code, done.output
        return done

    return run
