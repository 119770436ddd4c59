"""Service files for systemd and the README that `fedrot deploy init` writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

_UNIT = """\
# Install: see README.md. Runs as a user of its own; everything but its state folder is read-only to it.
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target

[Service]
User=fedrot
Group=fedrot
UMask=0077
ExecStart={python} -m fedrot deploy {command} {folder}
Restart=on-failure
RestartSec=10
# 2: a certificate, a key or a setting has to be mended first.
RestartPreventExitStatus=2
KillMode=mixed
TimeoutStopSec=30

NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writable}
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet=
AmbientCapabilities=

[Install]
WantedBy=multi-user.target
"""

_README = """\
# A federation of fedrot

`server/` belongs on the server, each folder under `nodes/` on its own machine. Nothing else is needed there but fedrot
with the extra `flower`, in the same version everywhere.

1. On the server: `fedrot deploy superlink server`
2. Copy each node's folder to its machine over a channel you trust (it holds that node's private key unless the node
   makes its own, see 3), delete it here, and run there: `fedrot deploy supernode {first}`
3. Better: let each node make its own key. Delete `node.key` and `node.pub` from its folder before copying, run
   `fedrot deploy keygen {first}` on the node, and bring only `node.pub` back as `server/keys/{first}.pub`.
4. Edit `node.toml` on each node: where its data and its model lie.
5. On the server: `fedrot deploy status server`, then `fedrot deploy run RECIPE --dir server`

The clients' numbers in the `node.toml` files must be those of the recipe, from 0 on, each on one node, and those that
`server/clients.toml` allows the node's key.
The certificates are valid for {days} days; `fedrot deploy renew server` makes new ones, and every node needs the new
`ca.crt`. As services: create the user `fedrot`, give it the folder, copy the `.service` file to `/etc/systemd/system/`.
Never copy `server/server.key` to a node or a node's `node.key` to another node.
"""


def unit(command: str, description: str, folder: Path, writable: Sequence[Path]) -> str:
    """A hardened systemd unit that runs `fedrot deploy COMMAND FOLDER`."""
    return _UNIT.format(
        description=description,
        python=sys.executable,
        command=command,
        folder=folder,
        writable=" ".join(str(path) for path in writable),
    )


def readme(first: str, days: int) -> str:
    """The next commands, for a federation whose first node has this name."""
    return _README.format(first=first, days=days)
