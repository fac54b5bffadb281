"""What a user's program might be, for type checkers: each line that ends in `# wrong` is an error, and no other."""

from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import mimicmotion_trt as mm
from mimicmotion_trt.events import Progress

Picture = NDArray[np.uint8]

with mm.Animator.load("tiny", device="cpu", limits=mm.Limits(frames=100)) as animator:
    settings = animator.settings(steps=3, guidance=1.0, size=(128, 192), person=2)
    assert_type(settings, mm.Settings)
    animator.settings(stepz=3)  # wrong
    animator.settings(layout="compacted")  # wrong
    mm.Settings(stepz=3)  # wrong
    job = animator.animate("person.jpg", "dance.mp4", settings)
    for event in job:
        assert_type(event, Progress)
        assert_type(event.preview, Picture | None)
    result = job.result()
    assert_type(result, mm.Result)
    assert_type(result.fps, float)
    assert_type(result.frames(), Picture)
    animator.animate("person.jpg", "dance.mp4", settings, motion_kind="film")  # wrong
    animator.animate(3, "dance.mp4")  # wrong
    reference = animator.reference("person.jpg", settings)
    motion = animator.rescale(animator.estimate_poses("dance.mp4", settings), reference, settings)
    pose_frames = animator.draw_poses(reference.pose, motion, settings=settings)
    latents = animator.sample(reference.picture, pose_frames, settings)
    animator.sample(Image.open("person.jpg"), np.zeros((2, 192, 128, 3), np.uint8))
    assert_type(animator.decode(latents), Picture)

poses: mm.PoseSequence = mm.estimate_poses("dance.mp4")
mm.draw_poses(poses, 192, 128)  # wrong
assert_type(mm.draw_poses(poses, 192, 128, canvas=256), Picture)
mm.draw_pose(poses)  # wrong

with mm.Client("localhost:50051", tls=mm.ClientTls(), token="secret") as client:
    assert_type(client.get("a").job, str)
    client.animate("person.jpg", "dance.mp4", {"steps": 3}, output="out.mp4").result().save("again.mp4")
    for step in client.animate("person.jpg", poses, priority=3):
        assert_type(step, mm.Event)
    client.gets("a")  # wrong


async def ask() -> None:
    """The same with asyncio."""
    async with mm.AsyncClient("localhost:50051") as client:
        assert_type((await client.get("a")).job, str)
        async for event in client.animate("person.jpg", poses):
            assert_type(event, mm.Event)
        name: str = client.get("a")  # wrong
        print(name)


try:
    raise mm.SettingsError("steps is 0.", field="settings.steps")
except mm.InputError as error:
    assert_type(error.field, str)
