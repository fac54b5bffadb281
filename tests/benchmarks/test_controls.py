"""The benchmark of the controls: pictures and a table, of settings that are no default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import controls

from mimicmotion_trt import Settings
from mimicmotion_trt.media.picture import read_picture


def test_each_variant_is_a_setting_that_the_page_describes():
    page = controls.DOCS.read_text()
    for name, rows in controls.PICTURES.items():
        assert f"(images/{name}.jpg)" in page
        for more in rows.values():
            assert Settings(**more) != Settings()
            assert all(f"`{setting}`" in page for setting in more)


def test_the_command_draws_what_it_ran(tmp_path: Path, capsys: Any, monkeypatch: Any):
    rows = {"pose_strength 0": {"pose_strength": 0.0}}
    monkeypatch.setattr(controls, "PICTURES", {"one": rows})
    controls.main(frames=2, steps=1, repeat=1, threads=1, images=tmp_path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    plain, without = told["controls"]
    assert (plain["setting"], plain["seconds"], without["setting"]) == ("plain", 1.0, "pose_strength 0")
    assert without["psnr_plain"] < plain["psnr_plain"]
    assert read_picture(tmp_path / "one.jpg").shape[0] > 3 * 96
