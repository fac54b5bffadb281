"""The service as its operator and its users type it: a server of the shipped bundle, over mTLS, with tokens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mimicmotion_trt.cli import app
from mimicmotion_trt.service import Client, ClientTls
from mimicmotion_trt.service.status import Unauthorized

from .hosting import ROOT, until

DEMO = ROOT / "demo"
TINY = ["--image", DEMO / "person.jpg", "--motion", DEMO / "balance.npz", "--steps", 1, "--frames", 2]


def command(*words: object, **environment: str) -> Result:
    """In this process; the server is one of its own."""
    return CliRunner().invoke(app, [*map(str, words)], env=environment)


@pytest.fixture
def tokens(tmp_path):
    """(the file, the token of alice, the admin's)."""
    file = tmp_path / "tokens"
    made = [command("new-token", *words, "--tokens", file) for words in (["alice"], ["root", "--admin"])]
    return file, *(done.stdout.strip() for done in made)


def test_a_server_with_mutual_tls_and_tokens_serves_the_commands(certificates, tokens, tmp_path):
    file, alice, root = tokens
    ready, config = tmp_path / "ready", tmp_path / "serve.toml"
    pair = {"certificate": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    tls = "\n".join(f"{name} = '{certificates / pem}'" for name, pem in pair.items())
    config.write_text(
        f"bundle = 'tiny'\nport = 0\nreflection = false\nready_file = '{ready}'\n[tls]\n{tls}\n"
    )
    serve = ["serve", "--config", str(config), "--tokens", str(file), "--threads", "1", "--json-logs"]
    checked = command(*serve, "--check", MIMICMOTION_SERVE_GRACE="5")
    assert (json.loads(checked.stdout)["grace"], json.loads(checked.stdout)["reflection"]) == (5.0, False)
    with subprocess.Popen(
        [sys.executable, "-m", "mimicmotion_trt", *serve], stderr=subprocess.PIPE
    ) as running:
        try:
            until(lambda: ready.exists() and ready.read_text() != "", 60)
            address, at = ready.read_text(), certificates.joinpath
            ours = ["--tls-ca", at("ca.pem"), "--tls-cert", at("client.pem"), "--tls-key", at("client.key")]
            to = ["--server", address, *ours]
            output = tmp_path / "out.mp4"
            done = command("animate", *TINY, "--output", output, *to, "--json", MIMICMOTION_TOKEN=alice)
            assert done.exit_code == 0, done.stderr
            job = json.loads(done.stdout.splitlines()[0])["job"]
            assert output.stat().st_size > 1000
            (tmp_path / "token").write_text(root + "\n")
            listed = command("jobs", "list", *to, "--token-file", tmp_path / "token", "--json")
            assert [json.loads(line)["job"] for line in listed.stdout.splitlines()] == [job]
            again = tmp_path / "again.mp4"
            watched = command("jobs", "watch", job, "--output", again, *to, MIMICMOTION_TOKEN=alice)
            assert f"{again}: done: " in watched.stdout
            assert again.read_bytes() == output.read_bytes()
            assert "succeeded" in command("jobs", "cancel", job, *to, MIMICMOTION_TOKEN=alice).stdout
            refused = command("jobs", "list", *to)
            assert (refused.exit_code, "wants a token" in refused.stderr) == (1, True)
            assert "cannot be reached" in command("jobs", "list", *to[:4], MIMICMOTION_TOKEN=alice).stderr
            file.write_text("")
            running.send_signal(signal.SIGHUP)
            tls_of_client = ClientTls(*map(Path, ours[1::2]))
            with Client(address, tls=tls_of_client, token=alice) as client:
                until(lambda: _is_refused(client))
        finally:
            running.terminate()
            log = running.stderr.read().decode()  # type: ignore[union-attr]
    assert running.returncode == 0
    assert {json.loads(line)["client"] for line in log.splitlines() if '"accepted"' in line} == {"alice"}
    assert alice not in log


def _is_refused(client: Client) -> bool:
    try:
        client.list()
    except Unauthorized:
        return True
    return False


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tls-client-ca", "ca.pem"], "TLS needs a certificate and its key"),
        (["--folder", "/nothing/at/all"], "no folder"),
        (["--config", "/nothing.toml"], "/nothing.toml cannot be read"),
        (["--tokens", "/nothing"], "/nothing cannot be read"),
        (["--limit", "frames=few"], "NAME=NUMBER"),
        (["--threads", "two"], "threads is 'two'. Give a whole number."),
        (["--bundle", "nope"], "there is no bundle 'nope'"),
    ],
)
def test_mistakes_of_an_operator_are_explained_before_the_port_is_open(words, told):
    done = command("serve", "--port", "0", *words)
    assert (done.exit_code, told in done.stderr) == (1, True), done.output
    assert "listen" not in done.output


@pytest.mark.parametrize("flag", [("--tls-ca", "ca.pem"), ("--priority", "3"), ("--deadline", "60")])
def test_flags_of_connection_and_order_are_for_a_server(tmp_path, flag):
    done = command("animate", *TINY, "--output", tmp_path / "out.mp4", *flag)
    assert (done.exit_code, f"{flag[0]} means nothing without --server" in done.stderr) == (1, True)
