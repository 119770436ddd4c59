"""Whether the server can be reached and vouched for, before Flower tries; its own retries say little and never end."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from fedrot.engines.flower.node import NODE_FILE
from fedrot.errors import ConfigError


def split(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, the brackets of an IPv6 address taken off."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_server(address: str, ca: Path, timeout: float = 5.0) -> str | None:
    """Shake hands with the server over TLS.

    Args:
        address: `host:port`.
        ca: the certificate that must vouch for the server's.
        timeout: seconds to wait for it.

    Returns:
        Why it cannot be reached now, None if it can.

    Raises:
        ConfigError: it is there, but its certificate is not vouched for, expired, or for another name.
    """
    host, port = split(address)
    context = ssl.create_default_context(cafile=str(ca))
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(_unverified(address, ca, error)) from error
    except ssl.SSLError as error:
        raise ConfigError(
            f"{address} does not speak TLS as expected ({error.reason}); is `superlink` in {NODE_FILE} a fedrot server?"
        ) from error
    except OSError as error:
        return error.strerror or type(error).__name__


def _unverified(address: str, ca: Path, error: ssl.SSLCertVerificationError) -> str:
    told = error.verify_message
    if "expired" in told:
        remedy = "run `fedrot deploy renew` on the server and copy its new ca.crt to every node"
    elif "not valid for" in told or "mismatch" in told:
        remedy = (
            f"connect by a name in its certificate, or make one with that name: `fedrot deploy renew --host "
            f"{split(address)[0]}`"
        )
    else:
        remedy = "copy ca.crt from the server's folder; if it is the same file, someone else answers at that address"
    return f"the server at {address} is not vouched for by '{ca}' ({told}); {remedy}"
