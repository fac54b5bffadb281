"""One model of options, from flags, environment and file."""

from __future__ import annotations

import json

import pytest

from mimicmotion_trt import errors
from mimicmotion_trt.service import ServiceConfig
from mimicmotion_trt.service.options import PREFIX, check_files, in_force, list_options, make_config

from .hosting import ROOT

FILE = """
port = 1
max_queue = 2
devices = ["cpu", "cpu"]
[keep]
seconds = 60
[limits]
frames = 100
"""


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text(FILE)
    environment = {f"{PREFIX}PORT": "7", f"{PREFIX}GRACE": "3", f"{PREFIX}KEEP_JOBS": "5", "HOME": "/root"}
    config = make_config({"port": 8}, file, environment)
    assert (config.port, config.grace, config.max_queue) == (8, 3.0, 2)
    assert (config.keep.seconds, config.keep.jobs, config.limits.frames) == (60.0, 5, 100)
    assert config.devices == ("cpu", "cpu")
    assert make_config({}, None, {f"{PREFIX}CONFIG": str(file)}).port == 1, (
        "the environment may name the file"
    )
    assert make_config({}, None, {}) == ServiceConfig()


def test_the_environments_texts_are_read_by_their_options_type():
    texts = {
        "BUNDLE": "7",
        "DEVICES": "cuda:0, cuda:1",
        "GRAPHS": "false",
        "UPLOAD_RATE": "1e6",
        "THREADS": "2",
    }
    config = make_config({}, None, {PREFIX + name: text for name, text in texts.items()})
    assert (config.bundle, config.devices, config.graphs) == ("7", ("cuda:0", "cuda:1"), False)
    assert (config.upload_rate, config.threads) == (1e6, 2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", "unknown key 'prot'"),
        ("[keep]\nhours = 1", "unknown key 'keep.hours'"),
        ("load = 'os.system'", "unknown key 'load'"),
        ("port = 'many'", "port is 'many'"),
        ("[keep]\nseconds = -1", "keep.seconds is -1"),
        ("port = ", "is no TOML file"),
        ("[tls]\nclient_ca = 'ca.pem'", "needs a certificate and its key"),
    ],
)
def test_a_file_that_is_wrong_is_told(tmp_path, text, told):
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(errors.ServiceError) as caught:
        make_config({}, file, {})
    assert told in str(caught.value)


@pytest.mark.parametrize("variable", ["PROT", "LOAD", "KEEP"])
def test_an_unknown_variable_with_our_prefix_is_told(variable):
    with pytest.raises(errors.ServiceError, match=f"unknown variable {PREFIX}{variable}"):
        make_config({}, None, {f"{PREFIX}{variable}": "1"})


def test_what_is_in_force_can_be_said_in_json_without_passwords(tmp_path):
    config = make_config({"traces": "http://me:secret@host:4317", "tokens": tmp_path / "tokens"}, None, {})
    said = json.loads(json.dumps(in_force(config)))
    assert "secret" not in json.dumps(said)
    assert (said["port"], said["limits"]["jobs"], said["keep"]["jobs"]) == (50051, 1, 200)
    assert len(list_options()) == sum(len(v) if isinstance(v, dict) else 1 for v in said.values())


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"tokens": "nothing"}, "tokens"),
        ({"folder": "nothing"}, "folder"),
        ({"store": __file__}, "store"),
        ({"ready_file": "nothing/ready"}, "ready_file"),
        ({"tls_certificate": "nothing", "tls_key": "nothing"}, "tls.key"),
        ({"bundle": "no-such-bundle"}, ""),
    ],
)
def test_files_are_looked_for_before_anything_is_started(wrong, field):
    with pytest.raises(errors.MimicMotionError) as caught:
        check_files(make_config(wrong, None, {}))
    assert caught.value.field == field


def test_the_guide_has_every_option():
    guide = (ROOT / "docs" / "guide" / "operations.md").read_text()
    for option in list_options():
        assert f"`{option.path[0]}`" in guide or f"`[{option.path[0]}]`" in guide, option.name
