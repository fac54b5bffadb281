"""The kernels on this machine: kernels.cu through g++ with its sanitizers, behind pipes."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from filelock import FileLock

from mimicmotion_trt.cuda.compiler import REALS, SOURCE
from mimicmotion_trt.engines.cuda_device import Launch, Plain

from ..gpu.kernel_checks import WRITTEN

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SEMANTICS = ["-ffp-contract=off", "-fno-strict-aliasing"]  # as the compiler of the device has them
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *SEMANTICS, *SANITIZERS]


@dataclass(frozen=True)
class Tail:
    """The last elements of a buffer of `size` elements, the others of which are zero."""

    array: np.ndarray[Any, Any]
    size: int


class Host:
    """Runs launches as a GPU would; the last pointer, or the last two, are what the kernel writes."""

    def __init__(self, program: Path, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self._program = program
        self._process = self._start()

    def run(self, launch: Launch, *pointers: np.ndarray[Any, Any] | Tail, first_block: int = 0) -> None:
        """Run blocks from `first_block` on; AssertionError if a sanitizer objects."""
        tails = [p if isinstance(p, Tail) else Tail(p, p.size) for p in pointers]
        call = [struct.pack("32s3I", launch.kernel.encode(), launch.blocks, launch.threads, first_block)]
        for tail in [*tails, *(Tail(np.array(scalar), 1) for scalar in launch.scalars)]:
            call += [
                struct.pack("2q", tail.size * tail.array.itemsize, tail.array.nbytes),
                tail.array.tobytes(),
            ]
        written = [tail.array for tail in tails[-WRITTEN.get(launch.kernel, 1) :]]
        answer = memoryview(self._answer(b"".join(call), sum(out.nbytes for out in written)))
        for out in written:
            out[...] = np.frombuffer(answer[: out.nbytes], out.dtype).reshape(out.shape)
            answer = answer[out.nbytes :]

    def _answer(self, call: bytes, size: int) -> bytes:
        stdin, stdout = self._pipes()
        try:
            stdin.write(call)
            stdin.flush()
            answer = stdout.read(size)
        except BrokenPipeError:
            answer = b""
        if len(answer) < size:
            _, log = self._process.communicate()
            self._process = self._start()
            raise AssertionError(log.decode())
        return answer

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _start(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen([self._program], stdin=pipe, stdout=pipe, stderr=pipe)

    def close(self) -> None:
        """End it; what the leak check found fails the test run."""
        _, log = self._process.communicate()
        assert self._process.returncode == 0, log.decode()


@pytest.fixture(scope="session")
def vast() -> Callable[[np.ndarray[Any, Any], int], Tail]:
    """A buffer of as many arrays of this shape: the last one is this one, the others are zero."""
    return lambda array, count: Tail(array, array.size * count)


@pytest.fixture(scope="session", params=REALS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """The kernels for each dtype of engine, compiled into build/ once for all processes of a test run."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    includes = [f"-I{HERE / 'shim'}", f"-I{SOURCE.parent}", f"-DREAL={REALS[request.param]}"]
    command = [compiler, *FLAGS, *map(str, includes), str(HERE / "driver.cc")]
    digest = hashlib.sha256(" ".join(command).encode())
    for path in [SOURCE, HERE / "driver.cc", *sorted((HERE / "shim").rglob("*.*"))]:
        digest.update(path.read_bytes())
    program = ROOT / "build" / f"test-kernels-{request.param}-{digest.hexdigest()[:16]}"
    program.parent.mkdir(exist_ok=True)
    with FileLock(f"{program}.lock"):
        if not program.exists():
            done = subprocess.run([*command, "-o", f"{program}.new"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            os.replace(f"{program}.new", program)
    host = Host(program, request.param)
    yield host
    host.close()


class HostDevice:
    """Numpy's memory, the kernels of g++, and a record of what is put on the stream."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.told: list[str] = []
        self._turn = threading.RLock()  # one stream: what threads ask for happens one after the other
        self.recorded = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        self.told.append("empty")
        return np.zeros(shape, dtype)

    def part(self, array: Any, start: int, stop: int) -> Any:
        return array[start:stop]

    def upload(self, values: Any, array: Any) -> None:
        assert (values.shape, values.dtype) == (array.shape, array.dtype)
        with self._turn:
            array[...] = values

    def download(self, array: Any) -> Any:
        with self._turn:
            return array.copy()

    def fetch(self, array: Any) -> Callable[[], Any]:
        values = self.download(array)
        return lambda: values

    def read(self, array: Any) -> Callable[[], Any]:
        values = array.copy()
        return lambda: self.told.append("read") or values

    def enqueue(self, work: Callable[[Any], None]) -> None:
        work(None)

    def copy(self, source: Any, target: Any) -> None:
        with self._turn:
            target[...] = source

    def launch(self, what: Launch, *arrays: Any, stream: Any) -> None:
        self.told.append(what.kernel)
        with self._turn:
            self.host.run(what, *arrays)

    def call(self, binding: Any, stream: Any) -> None:
        self.told.append("engine")
        binding()

    def record(self, work: Callable[[Any], None], *, graphs: bool) -> Plain:
        self.recorded += 1
        self.enqueue(work)
        return Plain(self.enqueue, work)

    def release_after(self, release: Callable[[], None]) -> None:
        release()

    def close(self) -> None:
        self.told.append("closed")


@pytest.fixture(scope="session")
def stand_in() -> type[HostDevice]:
    """A device made of numpy and of a `Host`, or of nothing where no kernel runs."""
    return HostDevice
