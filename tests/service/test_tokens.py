"""Bearer tokens: a file of hashes, and what each caller may see."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from mimicmotion_trt import errors
from mimicmotion_trt.service import AsyncClient, Client
from mimicmotion_trt.service.status import NotFound, Unauthorized
from mimicmotion_trt.service.tokens import Tokens, add_token

from .hosting import hosted, script, until

VIDEO = b"a video"


@pytest.fixture
def tokens(tmp_path):
    """(the file, the tokens of alice, bob and the admin root)."""
    file = tmp_path / "tokens"
    return file, *(add_token(file, name, admin=name == "root") for name in ("alice", "bob", "root"))


def test_the_file_knows_hashes_only_and_is_its_owners(tokens):
    file, alice, _, root = tokens
    assert alice not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    known = Tokens(file)
    assert (known.find(alice).name, known.find(alice).admin) == ("alice", False)
    assert known.find(root).admin
    assert known.find("") is known.find(alice + "x") is known.find("alice") is None


@pytest.mark.parametrize(
    "line",
    [
        "alice",
        "alice:abc",
        "10.0.0.1:" + "0" * 64,
        "a:" + "0" * 64 + ":boss",
        "\xff",
        "a:" + "0" * 64 + ":priority=10",
    ],
)
def test_a_line_that_is_none_is_told_by_its_number(tmp_path, line):
    file = tmp_path / "tokens"
    file.write_text(f"# a comment\n\n{line}\n", "latin-1")
    with pytest.raises(
        errors.ServiceError, match=r"tokens(, line 3: this is not| cannot be read: it is not UTF-8)"
    ):
        Tokens(file)


def test_a_token_has_a_highest_priority(tmp_path):
    file = tmp_path / "tokens"
    low, boss = add_token(file, "low", priority=-1), add_token(file, "boss", admin=True)
    assert file.read_text().splitlines()[0].endswith(":priority=-1")
    assert Tokens(file).find(low).priority == -1
    with pytest.raises(errors.SettingsError, match="priority is 10"):
        add_token(file, "other", priority=10)
    with hosted(tokens=file) as host:
        with Client(host.address, token=low) as client:
            with pytest.raises(errors.SettingsError, match=r"is 0, .* may have -1 at most") as caught:
                client.create(script(), VIDEO)
            assert caught.value.field == "priority"
            assert client.get(client.create(script(), VIDEO, priority=-1).job).priority == -1
        with Client(host.address, token=boss) as client:
            assert client.get(client.create(script(), VIDEO, priority=9).job).priority == 9


def test_a_name_is_taken_once(tokens):
    with pytest.raises(errors.ServiceError, match="already"):
        add_token(tokens[0], "alice")
    with pytest.raises(errors.ServiceError, match="cannot name"):
        add_token(tokens[0], "::1")


def test_each_client_sees_its_own_jobs_and_an_admin_all(tokens):
    file, alice, bob, root = tokens
    with hosted(tokens=file) as host:
        of = {name: Client(host.address, token=token) for name, token in
              (("alice", alice), ("bob", bob), ("root", root))}  # fmt: skip
        job = of["alice"].create(script(pause=0.02), VIDEO, {"steps": 500}, request_id="key").job
        theirs = of["bob"].create(script(), VIDEO, request_id="key").job
        assert theirs != job, "a request_id is its client's own"
        assert [info.job for info in of["alice"].list()] == [job]
        assert [info.job for info in of["bob"].list()] == [theirs]
        assert {info.job for info in of["root"].list()} == {job, theirs}
        for ask in (of["bob"].get, of["bob"].cancel, lambda job: list(of["bob"].watch(job))):
            with pytest.raises(NotFound):
                ask(job)
        assert of["alice"].get(job).state in ("queued", "running")
        of["root"].cancel(job)
        until(lambda: of["alice"].get(job).state == "cancelled")
        for client in of.values():
            client.close()


def test_a_job_is_its_clients_in_the_servers_next_life_too(tokens, tmp_path):
    file, alice, bob, _ = tokens
    options = {"tokens": file, "store": tmp_path / "store"}
    with hosted(**options) as host, Client(host.address, token=alice) as client:
        job = client.animate(script(), VIDEO, request_id="key").result().done
        (info,) = client.list()
    with hosted(**options) as host, Client(host.address, token=bob) as stranger:
        assert stranger.list() == []
        with pytest.raises(NotFound):
            stranger.get(info.job)
        theirs = stranger.create(script(), VIDEO, request_id="key").job
        with Client(host.address, token=alice) as client:
            assert client.watch(info.job).result().done == job
            assert client.create(script(), VIDEO, request_id="key").job == info.job != theirs


def test_the_client_for_asyncio_takes_tokens_as_well(tokens):
    async def story(address: str, token: str) -> list:
        async with AsyncClient(address, token=token) as client:
            return await client.list()

    with hosted(tokens=tokens[0]) as host:
        assert asyncio.run(story(host.address, tokens[1])) == []
        with pytest.raises(Unauthorized):
            asyncio.run(story(host.address, "wrong"))


def test_without_a_token_that_is_known_only_health_answers(tokens):
    with hosted(tokens=tokens[0]) as host:
        for token in ("", "wrong"):
            with Client(host.address, token=token) as client:
                assert client.health() == "SERVING"
                with pytest.raises(Unauthorized):
                    client.list()
                with pytest.raises(Unauthorized):
                    client.animate(script(), VIDEO).result()
        with grpc.insecure_channel(host.address) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/mimicmotion.v1.AnimationService/ListAnimations")(b"")
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_are_reloaded_and_a_wrong_file_changes_nothing(tokens):
    file, alice, *_ = tokens
    with hosted(tokens=file) as host:
        late = add_token(file, "late")
        with Client(host.address, token=late) as client:
            with pytest.raises(Unauthorized):
                client.list()
            host.server.reload()
            assert client.list() == []
            whole = file.read_text()
            file.write_text("what is this")
            host.server.reload()
            assert client.list() == []
            file.write_text("\n".join(line for line in whole.splitlines() if not line.startswith("late")))
            host.server.reload()
            with pytest.raises(Unauthorized):
                client.list()
        with Client(host.address, token=alice) as client:
            assert client.list() == []
