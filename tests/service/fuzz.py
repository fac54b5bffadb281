"""Mutated files, uploads and wire messages by the thousand: each has to end as the caller's error, or well.

    python -m tests.service.fuzz --count 100000 --seed 0

Half of them are files that are opened as an engine opens them, in this process; half are messages to a server around
the stand-in animator, of all methods. What is found is printed with its number: `--count 1 --first N` tries it again.
A finding is another exception or status than a client's, more than 10 s, a path or a stack in a message, or memory
that grows by more than 1 GiB.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import re
import resource
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np

from mimicmotion_trt import errors
from mimicmotion_trt.limits import Limits
from mimicmotion_trt.media.picture import encode_picture, read_picture
from mimicmotion_trt.media.writer import FragmentedMp4, VideoWriter
from mimicmotion_trt.pose import PoseSequence
from mimicmotion_trt.pose.motion import map_pictures, open_motion
from mimicmotion_trt.service.generated.mimicmotion.v1 import animation_pb2 as pb
from mimicmotion_trt.settings import Settings

from .hosting import Host, hosted, script

ROOT = Path(__file__).parents[2]
SECONDS = 10.0
MEMORY = 2**30
LEAKS = re.compile(r"(/[\w.-]+){2}|Traceback|File \"|\.py\b")
"""A path or a stack."""
NUMBERS = [0, 1, -1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]
CLIENT_CODES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "RESOURCE_EXHAUSTED", "CANCELLED",
                "DEADLINE_EXCEEDED"}  # fmt: skip
LIMITS = Limits(frames=200, output_pixels=512 * 512, picture_bytes=2**20, motion_bytes=2**21)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers, and pieces that are cut out, doubled, moved or made up."""
    raw = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(raw) + 1)
        span = min(len(raw) - at, int(chance.expovariate(1 / 8)) + 1)
        match chance.randrange(7):
            case 0 if at < len(raw):
                raw[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(raw):
                raw[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, ord("["), ord("{"), ord("9"), ord("-")])
            case 2:
                del raw[at : at + span]
            case 3:
                raw[at:at] = raw[at : at + span] * chance.choice([1, 1, 50])
            case 4:
                raw[at:at] = chance.randbytes(span)
            case 5:
                size = chance.choice([2, 4, 8])
                number = chance.choice(NUMBERS) % 2 ** (8 * size)
                raw[at : at + size] = number.to_bytes(size, chance.choice(["big", "little"]))
            case _:
                del raw[at : at + 1 if chance.random() < 0.8 else None]
    return bytes(raw)


# ---- files ----


class Files:
    """Opens mutated files as an engine would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        poses = PoseSequence.load(ROOT / "demo" / "balance.npz")[:3]
        poses.save(folder / "poses.json")
        np.save(folder / "pictures.npy", np.zeros((3, 64, 64, 3), np.uint8))
        grey = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
        videos = {}
        for suffix in ("mp4", "webm", "gif"):
            with VideoWriter(path := folder / f"video.{suffix}", fps=25, size=(64, 64)) as writer:
                for frame in grey:
                    writer.write(frame)
            videos[suffix] = path.read_bytes()
        self.seeds: list[tuple[str, bytes]] = [
            ("motion", poses.to_bytes()),
            ("archive", poses.to_bytes()),
            ("motion", (folder / "poses.json").read_bytes()),
            ("pictures", (folder / "pictures.npy").read_bytes()),
            *(("motion", data) for data in videos.values()),
            ("picture", encode_picture(grey[0])),
            ("picture", (ROOT / "demo" / "person.jpg").read_bytes()[:60_000]),
        ]

    def try_one(self, chance: random.Random) -> str:
        """The outcome's name; raises what is no client's error."""
        kind, seed = chance.choice(self.seeds)
        data = _mutated_archive(seed, chance) if kind == "archive" else mutate(seed, chance)
        try:
            self._open(kind, data, Settings(stride=chance.choice([None, 1, 10_000])))
        except errors.InputError as error:
            check_text(str(error))
            return type(error).__name__
        return "opened"

    def _open(self, kind: str, data: bytes, settings: Settings) -> None:
        if kind == "picture":
            read_picture(data, LIMITS)
            return
        source: object = data
        if kind == "pictures":
            (self._folder / "motion").write_bytes(data)
            source = map_pictures(self._folder / "motion")
        motion = open_motion(source, settings, LIMITS)
        frames = motion.video() if motion.video is not None else iter(())
        shown = [np.ascontiguousarray(frame) for frame in itertools.islice(frames, 3)]
        size = (shown[0].shape[1], shown[0].shape[0]) if shown else (64, 64)
        mp4 = FragmentedMp4(motion.fps, size, audio=motion.audio)
        mp4.write(np.stack(shown or [np.zeros((64, 64, 3), np.uint8)]))
        mp4.close()


def _mutated_archive(seed: bytes, chance: random.Random) -> bytes:
    """An .npz whose members are mutated and packed properly: damage that no checksum finds."""
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(list(members))
    head = members[name][:128]
    members[name] = mutate(head, chance) + members[name][128:]
    with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return packed.getvalue()


# ---- messages ----


class Messages:
    """Sends mutated messages to a server."""

    def __init__(self, host: Host, channel: grpc.Channel) -> None:
        self._host, self._channel = host, channel
        settings = pb.AnimationSettings(steps=2, frames=2, size=pb.Size(width=64, height=64))
        self._pid = host.engine_pid
        picture, motion = script(frames=1, steps=1), b"a video"
        header = pb.AnimationHeader(
            settings=settings,
            motion_kind=1,
            picture_bytes=len(picture),
            motion_bytes=len(motion),
            request_id="k",
        )
        self._upload = [
            pb.AnimationUpload(header=header),
            pb.AnimationUpload(picture=picture),
            pb.AnimationUpload(motion=motion),
        ]
        self._requests: dict[str, bytes] = {
            "GetAnimation": pb.GetAnimationRequest(job="0" * 32).SerializeToString(),
            "CancelAnimation": pb.CancelAnimationRequest(job="0" * 32).SerializeToString(),
            "ListAnimations": pb.ListAnimationsRequest().SerializeToString() or b"\x08\x01",
            "WatchAnimation": pb.WatchAnimationRequest(job="0" * 32, after_sequence=3).SerializeToString(),
            "EstimateAnimation": pb.EstimateAnimationRequest(settings=settings, frames=9).SerializeToString(),
        }

    def try_one(self, chance: random.Random) -> str:
        """The name of the status; raises what is no client's."""
        name = chance.choice(["Animate", "Animate", "CreateAnimation", *self._requests])
        if name in self._requests:
            sent = iter([mutate(self._requests[name], chance)])
        else:
            sent = self._mutated_upload(chance)
        code, text = self._send(name, sent)
        check_text(text)
        # The picture of the upload is the stand-in's script: a broken one fails there, as a broken engine would.
        if code not in CLIENT_CODES and not (code == "INTERNAL" and "The engine failed" in text):
            raise AssertionError(f"{name}: {code}: {text}")
        if self._host.engine_pid != self._pid:
            raise AssertionError(f"{name}: the engine is another process now")
        return code

    def _mutated_upload(self, chance: random.Random) -> Iterator[bytes]:
        parts = list(self._upload)
        if chance.random() < 0.2:
            chance.shuffle(parts)
        if chance.random() < 0.2:
            parts.insert(chance.randrange(4), chance.choice(parts))
        if chance.random() < 0.2:
            parts.pop()
        requests = [pb.AnimateRequest(upload=part).SerializeToString() for part in parts]
        at = chance.randrange(len(requests))
        requests[at] = mutate(requests[at], chance)
        return iter(requests)

    def _send(self, name: str, sent: Iterator[bytes]) -> tuple[str, str]:
        method = f"/mimicmotion.v1.AnimationService/{name}"
        call = self._channel.stream_stream(method, lambda data: data, lambda data: data)
        try:
            for _ in call(sent, timeout=SECONDS):
                pass
        except grpc.RpcError as error:
            code, text = error.code().name, error.details() or ""
            if code == "DEADLINE_EXCEEDED" and "Deadline" in text:
                raise AssertionError(f"{name}: nothing for {SECONDS:g} s") from None
            return code, text
        return "OK", ""


# ---- both ----


def check_text(text: str) -> None:
    """Raises if a message has a path or a stack."""
    if LEAKS.search(text):
        raise AssertionError(f"a message tells too much: {text}")


def run(try_one: Callable[[random.Random], str], seeds: range) -> tuple[Counter[str], list[str]]:
    """(outcomes, findings)."""
    outcomes: Counter[str] = Counter()
    findings = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for seed in seeds:
        began = time.monotonic()
        try:
            outcomes[try_one(random.Random(seed))] += 1
        except Exception as error:
            findings.append(f"{seed}: {type(error).__name__}: {error}"[:500])
        if (taken := time.monotonic() - began) > SECONDS:
            findings.append(f"{seed}: took {taken:.1f} s")
        if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) > MEMORY:
            findings.append(f"{seed}: memory grew by {grown / 2**20:.0f} MiB")
            before += grown
    return outcomes, findings


def fuzz_files(seeds: range) -> tuple[Counter[str], list[str]]:
    """Open so many mutated files."""
    with tempfile.TemporaryDirectory() as folder:
        return run(Files(Path(folder)).try_one, seeds)


def fuzz_messages(seeds: range) -> tuple[Counter[str], list[str]]:
    """Send so many mutated messages, and see that the server works as before."""
    with (
        hosted(limits=LIMITS, upload_patience=2.0) as host,
        grpc.insecure_channel(host.address) as channel,
    ):
        outcomes, findings = run(Messages(host, channel).try_one, seeds)
        if host.server.scheduler.busy or host.server.scheduler.uploads:
            findings.append("a job is left")
        return outcomes, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", "--first", type=int, default=0)
    options = parser.parse_args()
    half, failed = -(-options.count // 2), False
    for name, fuzz in (("files", fuzz_files), ("messages", fuzz_messages)):
        began = time.monotonic()
        outcomes, findings = fuzz(range(options.seed, options.seed + half))
        seconds = round(time.monotonic() - began, 1)
        print(
            json.dumps({"fuzz": name, "count": half, "seconds": seconds, "outcomes": outcomes.most_common()})
        )
        print("\n".join(findings[:50]))
        failed |= bool(findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
