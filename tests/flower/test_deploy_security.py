"""Who may do what in a deployed federation: real processes on the loopback."""

from __future__ import annotations

import json
import shutil
import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, StartRunRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedrot.engines.flower.deploy.init import keygen
from fedrot.engines.flower.deploy.pki import check_private_key, make_certificates
from tests.flower.deployed import SECRET_FILES, Federation, children, eventually, secrets_out_of_place

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server and one node that is online."""
    made = Federation(tmp_path_factory.mktemp("security"), nodes=2)
    try:
        made.start_server()
        made.start_node(made.folders[0])
        eventually(lambda: made.node("node-0").status == "online")
        yield made
    finally:
        made.stop()


def copy_of(federation: Federation, number: int, name: str) -> Path:
    """A copy of a node's folder, as an attacker or an absent-minded owner might make one."""
    folder = federation.root / name
    shutil.copytree(federation.folders[number], folder, ignore=shutil.ignore_patterns("state"))
    return folder


def test_a_node_with_a_key_that_is_not_registered_is_refused(federation: Federation):
    folder = copy_of(federation, 1, "stranger")
    (folder / "node.key").unlink()
    keygen(folder)
    process = federation.start_node(folder)
    assert process.wait() == 2
    assert "refuses the key" in process.said
    assert str(folder / "node.key") in process.said
    assert "not registered" in process.said


def test_a_second_node_with_the_same_key_is_refused_and_the_first_stays(federation: Federation):
    process = federation.start_node(copy_of(federation, 0, "twin"))
    assert process.wait() == 2
    assert "another node is online with it" in process.said
    assert federation.node("node-0").status == "online"


def test_a_server_that_another_authority_vouches_for_is_refused(federation: Federation):
    folder = copy_of(federation, 1, "elsewhere")
    (folder / "ca.crt").write_bytes(make_certificates([], 30).ca)
    process = federation.start_node(folder)
    assert process.wait() == 2
    assert f"is not vouched for by '{folder / 'ca.crt'}'" in process.said
    assert "copy ca.crt from the server's folder" in process.said


def test_a_node_waits_for_a_server_that_is_not_there_yet(federation: Federation):
    folder = copy_of(federation, 1, "early")
    text = (folder / "node.toml").read_text()
    (folder / "node.toml").write_text(text.replace("127.0.0.1:", "127.0.0.2:"))
    process = federation.start_node(folder)
    eventually(lambda: "waiting for the server at 127.0.0.2" in process.said)
    process.stop()
    assert process.process.returncode == 0


def test_an_expired_authority_is_named_before_anything_is_sent(federation: Federation):
    folder = copy_of(federation, 1, "expired")
    old = make_certificates([], 10, now=datetime.now(UTC) - timedelta(days=30))
    (folder / "ca.crt").write_bytes(old.ca)
    process = federation.start_node(folder)
    assert process.wait() == 2
    assert f"'{folder / 'ca.crt'}': the certificate expired on" in process.said
    assert "fedrot deploy renew" in process.said


def test_a_server_with_an_expired_certificate_does_not_start(federation: Federation):
    server = federation.root / "old-server"
    shutil.copytree(federation.server_folder, server, ignore=shutil.ignore_patterns("state"))
    old = make_certificates([], 10, now=datetime.now(UTC) - timedelta(days=30))
    (server / "server.crt").write_bytes(old.server)
    process = federation.start("superlink", server, name="old-server")
    assert process.wait() == 2
    assert f"'{server / 'server.crt'}': the certificate expired on" in process.said


def test_two_nodes_with_one_key_are_found_when_the_server_starts(federation: Federation):
    server = federation.root / "twin-server"
    shutil.copytree(federation.server_folder, server, ignore=shutil.ignore_patterns("state"))
    shutil.copyfile(server / "keys" / "node-0.pub", server / "keys" / "node-7.pub")
    process = federation.start("superlink", server, name="twin-server")
    assert process.wait() == 2
    assert "node-7.pub': the same key as node-0.pub" in process.said


def outside(federation: Federation) -> str:
    return f"127.0.0.1:{federation.port}"


def test_control_is_not_served_to_the_network_even_with_the_token(federation: Federation):
    ca = federation.server.ca.read_bytes()
    with ControlHttpClient.from_server_address(outside(federation), False, ca, []) as client:
        with pytest.raises(httpx.HTTPStatusError) as caught:
            client.ListNodes(ListNodesRequest())
        assert caught.value.response.status_code == 404
        with pytest.raises(httpx.HTTPStatusError) as caught:
            client.StartRun(StartRunRequest())
        assert caught.value.response.status_code == 404


def test_control_on_the_loopback_needs_the_token(federation: Federation):
    given = json.loads(federation.server.control.read_text())
    ca = federation.server.ca.read_bytes()
    with ControlHttpClient.from_server_address(given["address"], False, ca, []) as client:
        with pytest.raises(httpx.HTTPStatusError) as caught:
            client.ListNodes(ListNodesRequest())
        assert caught.value.response.status_code == 404
    with federation.control() as interface:
        assert {node.name for node in interface.nodes()} == {"node-0", "node-1"}


def test_runs_cannot_be_claimed_without_the_executors_secret(federation: Federation):
    given = json.loads(federation.server.control.read_text())
    ca = federation.server.ca.read_bytes()
    for address, status in ((outside(federation), 404), (given["address"], 401)):
        with RuntimeHttpClient.from_server_address(address, False, ca, []) as client:
            with pytest.raises(httpx.HTTPStatusError) as caught:
                client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
            assert caught.value.response.status_code == status


def test_a_node_cannot_speak_for_another(federation: Federation):
    key = check_private_key(federation.folders[1] / "node.key")
    other = federation.node("node-0").id
    ca = federation.server.ca.read_bytes()
    signed = [NodeAuthHttpInterceptor(key, key.public_key())]
    with FleetHttpClient.from_server_address(outside(federation), False, ca, signed) as client:
        with pytest.raises(httpx.HTTPStatusError) as caught:
            client.PullMessages(PullMessagesRequest(node=Node(node_id=other)))
        assert caught.value.response.status_code == 401


def test_plain_http_and_old_tls_are_not_answered(federation: Federation):
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{outside(federation)}/v1/fleet/pull-messages")
    context = ssl.create_default_context(cafile=federation.server.ca)
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    assert httpx.post(f"https://{outside(federation)}/docs", verify=context).status_code == 404


CLIENT = """
from pathlib import Path
Path({mark!r}).write_text("imported")
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    Path({mark!r}).write_text("ran")
    raise RuntimeError
"""

SERVER = """
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
    waiting, replies = set(grid.push_messages(messages)), []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            replies.append(reply.error.reason if reply.has_error() else "an answer")
        time.sleep(0.1)
    Path({out!r}).write_text(json.dumps(replies))
"""

PYPROJECT = """
[project]
name = "intruder"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedrot"
[tool.flwr.app.components]
serverapp = "intruder_server:app"
clientapp = "intruder_client:app"
[tool.flwr.app.config]
recipe = ""
"""


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_a_warm_node_never_runs_code_that_the_server_ships(federation: Federation, tmp_path: Path):
    mark, out = tmp_path / "mark", tmp_path / "replies.json"
    files = {
        "pyproject.toml": PYPROJECT.encode(),
        "intruder_client.py": CLIENT.format(mark=str(mark)).encode(),
        "intruder_server.py": SERVER.format(out=str(out)).encode(),
    }
    content = build_fab_from_files(files)[0]
    given = json.loads(federation.server.control.read_text())
    with federation.control() as interface:
        client = interface._client  # no command of fedrot submits another app
        run = client.StartRun(StartRunRequest(fab=fab_to_proto(Fab("", content, {})))).run_id
        eventually(lambda: interface.run(run).status == "finished")
        assert interface.run(run).outcome == "completed", interface.run(run).details
    [reply] = json.loads(out.read_text())
    assert "refuses this app" in reply
    assert not mark.exists()
    assert not list(federation.folders[0].rglob("*intruder*"))
    assert given["token"] not in federation.server.log(run).read_text()


def test_secrets_stay_in_files_of_their_owner(federation: Federation):
    assert not secrets_out_of_place(federation)
    owned = [path for path in federation.root.rglob("*") if path.is_file() and path.name in SECRET_FILES]
    assert {path.name for path in owned} == SECRET_FILES
    for path in owned:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in (federation.server.state, federation.folders[0] / "state"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_no_secret_is_an_argument_of_a_process(federation: Federation):
    token = json.loads(federation.server.control.read_text())["token"]
    for process in federation.processes:
        if process.process.poll() is not None:
            continue
        for name, pid in children(process.process.pid).items():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            assert token not in words, name
            given = words[words.index("--superexec-auth-secret-file") + 1] if "main" not in name else ""
            assert given.startswith("/dev/fd/") or not given
            variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
            assert {"FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1"} <= set(variables)
            assert "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1" in variables
            assert not any(token in variable for variable in variables)


def test_a_node_that_is_taken_off_the_list_is_shut_out_when_the_server_starts_again(federation: Federation):
    (federation.server.keys / "node-1.pub").unlink()
    assert federation.superlink is not None
    federation.superlink.stop()
    assert federation.superlink.process.returncode == 0
    federation.start_server()
    with federation.control() as interface:
        assert [node.name for node in interface.nodes()] == ["node-0"]
    process = federation.start_node(copy_of(federation, 1, "removed"))
    assert process.wait() == 2
    assert "not registered" in process.said
