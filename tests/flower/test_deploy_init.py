"""What `fedrot deploy init`, `keygen` and `renew` write."""

from __future__ import annotations

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fedrot.engines.flower.deploy.init import init, keygen, renew
from fedrot.engines.flower.deploy.layout import load_server
from fedrot.engines.flower.deploy.pki import (
    check_certificate,
    check_private_key,
    make_certificates,
    public_bytes,
    read_public_key,
)
from fedrot.engines.flower.node import load_node
from fedrot.errors import ConfigError, OutputError


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    init(tmp_path / "fed", 2, hosts=["fed.example.org", "192.0.2.7"])
    return tmp_path / "fed"


def test_what_is_written_is_what_the_commands_read(federation: Path):
    server, node = load_server(federation), load_node(federation / "nodes" / "node-1")
    assert node.superlink == "fed.example.org:8000"
    assert node.settings.clients == (1,)
    check_certificate(server.certificate)
    key = check_private_key(node.key)
    assert read_public_key(server.keys / "node-1.pub") == public_bytes(key.public_key())


def test_only_the_owner_may_read_a_private_key(federation: Path):
    secrets = [
        path for path in federation.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    ]
    assert {path.name for path in secrets} == {"server.key", "node.key"}
    assert len(secrets) == 3
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)


def test_the_authoritys_private_key_is_not_kept(federation: Path):
    authority = x509.load_pem_x509_certificate((federation / "server" / "ca.crt").read_bytes()).public_key()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    server = load_pem_private_key((federation / "server" / "server.key").read_bytes(), None).public_key()
    assert server != authority


def test_the_servers_certificate_names_its_hosts_and_the_loopback(federation: Path):
    certificate = check_certificate(federation / "server" / "server.crt")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"192.0.2.7", "127.0.0.1", "::1"}


def test_the_certificates_pass_the_strictest_check_of_openssl(federation: Path):
    server = federation / "server"
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-verify_hostname",
        "fed.example.org",
    ]
    done = subprocess.run(
        [*command, "-CAfile", server / "ca.crt", server / "server.crt"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(federation: Path):
    before = {path: path.read_bytes() for path in federation.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="not an empty folder"):
        init(federation, 3)
    assert before == {path: path.read_bytes() for path in federation.rglob("*") if path.is_file()}


def test_a_recipes_clients_are_dealt_to_the_nodes(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[model]\npath = "package:m"\n[task]\ndata = "tweets"\n[federation]\nclients = 5\n')
    folders = init(tmp_path / "fed", 2, recipe=recipe)
    assert [load_node(folder).settings.clients for folder in folders] == [(0, 1), (2, 3, 4)]
    with pytest.raises(ConfigError, match=r"--nodes 6: the recipe has federation\.clients = 5"):
        init(tmp_path / "more", 6, recipe=recipe)


@pytest.mark.parametrize("host", ["https://fed.example.org", "fed.example.org:8000", "", "a b"])
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str):
    with pytest.raises(ConfigError, match="expected a host name or an address"):
        init(tmp_path / "fed", 1, hosts=[host])
    assert not (tmp_path / "fed").exists()


def test_a_node_makes_its_own_key_and_never_overwrites_it(tmp_path: Path):
    (folder,) = init(tmp_path / "fed", 1, own_keys=True)
    assert not list((tmp_path / "fed" / "server" / "keys").iterdir())
    keygen(folder)
    key = (folder / "node.key").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        keygen(folder)
    assert (folder / "node.key").read_bytes() == key


def test_a_key_that_others_may_read_is_refused(federation: Path):
    key = federation / "nodes" / "node-0" / "node.key"
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="other users may read this private key"):
        check_private_key(key)


def test_a_key_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "node.key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    with pytest.raises(ConfigError, match="expected one on curve P-384"):
        check_private_key(path)


def test_keys_of_ssh_keygen_are_accepted(tmp_path: Path):
    path = tmp_path / "node.key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", path], check=True)
    assert read_public_key(tmp_path / "node.key.pub") == public_bytes(check_private_key(path).public_key())


def test_an_expired_certificate_is_named_with_its_dates_and_the_remedy(tmp_path: Path):
    path = tmp_path / "server.crt"
    path.write_bytes(make_certificates([], 10, now=datetime.now(UTC) - timedelta(days=20)).server)
    with pytest.raises(ConfigError, match=r"server\.crt.*expired on \d{4}-.*fedrot deploy renew"):
        check_certificate(path)


def test_a_certificate_of_tomorrow_is_refused_with_the_clocks_time(tmp_path: Path):
    path = tmp_path / "server.crt"
    path.write_bytes(make_certificates([], 10, now=datetime.now(UTC) + timedelta(days=2)).server)
    with pytest.raises(ConfigError, match=r"is valid from .* clock says"):
        check_certificate(path)


def test_renewing_keeps_hosts_and_node_keys(federation: Path):
    before = (federation / "server" / "ca.crt").read_bytes()
    renew(federation, 30)
    assert (federation / "server" / "ca.crt").read_bytes() != before
    assert (federation / "server" / "ca.crt.old").read_bytes() == before
    certificate = check_certificate(federation / "server" / "server.crt")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fed.example.org" in names.get_values_for_type(x509.DNSName)
    assert stat.S_IMODE((federation / "server" / "server.key").stat().st_mode) == 0o600


def test_a_service_runs_its_own_folder_and_may_write_its_state_alone(federation: Path):
    text = (federation / "nodes" / "node-0" / "fedrot-supernode.service").read_text()
    folder = federation / "nodes" / "node-0"
    assert f"deploy supernode {folder}\n" in text
    assert f"ReadWritePaths={folder / 'state'}\n" in text
    assert {"NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes"} <= set(text.splitlines())
