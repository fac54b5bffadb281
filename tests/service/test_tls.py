"""Certificates and keys of both ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mimicmotion_trt import errors
from mimicmotion_trt.service import Client, ClientTls, ServiceConfig, Tls

from .hosting import Host, hosted, script


def test_tls_with_client_certificates(certificates, capfd):
    at = certificates.joinpath
    tls = Tls(certificate=at("server.pem"), key=at("server.key"), client_ca=at("ca.pem"))
    with hosted(tls=tls, json_logs=True) as host:
        own = ClientTls(ca=at("ca.pem"), certificate=at("client.pem"), key=at("client.key"))
        with Client(host.address, tls=own) as client:
            assert client.animate(script(), b"a video").result().done.frames == 6
        for stranger in (ClientTls(ca=at("ca.pem")), None):
            with Client(host.address, tls=stranger, timeout=2) as client, pytest.raises(errors.ServiceError):
                client.health()
    ours = [line for line in capfd.readouterr().err.splitlines() if line[0] == "{"]  # gRPC's core says more
    said = {line["event"]: line for line in map(json.loads, ours)}
    assert "--tls-ca CA.pem --tls-cert CLIENT.pem --tls-key CLIENT.key" in said["next step"]["command"]


@pytest.mark.parametrize(
    ("files", "field", "told"),
    [
        ({"certificate": "nothing.pem"}, "tls.certificate", "nothing.pem cannot be read"),
        ({"certificate": "names"}, "tls.certificate", "names holds no certificate"),
        ({"certificate": "server.key"}, "tls.certificate", "server.key holds no certificate"),
        ({"key": "names"}, "tls.key", "names holds no private key"),
        ({"key": "client.key"}, "tls.key", "client.key is not the key of"),
        ({"key": "encrypted.key"}, "tls.key", "encrypted.key is encrypted"),
        ({"client_ca": "names"}, "tls.client_ca", "names holds no certificate"),
    ],
)
def test_a_wrong_file_is_told_by_its_name(certificates, files, field, told):
    chosen = {"certificate": "server.pem", "key": "server.key"} | files
    with pytest.raises(errors.ServiceError, match=told) as caught:
        Host(tls=Tls(**{name: certificates / file for name, file in chosen.items()}))
    assert caught.value.field == field


def test_an_authority_of_clients_without_a_certificate_of_the_servers_own_is_refused(certificates):
    with pytest.raises(errors.ServiceError, match="certificate and its key"):
        ServiceConfig(tls=Tls(client_ca=certificates / "ca.pem"))


def test_a_clients_certificate_needs_its_key(certificates):
    with pytest.raises(errors.ServiceError, match="belong together"):
        Client("localhost:1", tls=ClientTls(certificate=certificates / "client.pem"))
    with pytest.raises(errors.ServiceError, match="holds no certificate"):
        Client("localhost:1", tls=ClientTls(ca=Path(__file__)))


@pytest.mark.parametrize(("address", "token"), [("localhost", ""), (50051, ""), ("localhost:1", 3)])
def test_an_address_without_a_port_and_a_token_of_another_kind_are_refused(address, token):
    with pytest.raises(errors.ServiceError):
        Client(address, token=token)


def test_tls_of_another_kind_is_refused():
    with pytest.raises(errors.ServiceError, match="tls is a bool") as caught:
        Client("localhost:1", tls=True)
    assert "ClientTls(" in caught.value.remedy
