"""Which names this server answers to: keeps pages of other sites out that make their own name point here.

Such a page (DNS rebinding) looks like one of this server to the browser, so only the name that it uses gives it away.
An address cannot be pointed elsewhere, so addresses are taken as they come; a server that listens on the loopback only
takes those of the loopback.
"""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from server.errors import UnknownHost, reply_for

__all__ = ["ANY_HOST", "HostCheck", "Hosts"]

ANY_HOST = "*"
"""Among the names of a server: every name is taken."""


class Hosts:
    """The names of a server.

    Args:
        listens_on: Address or name that it listens on.
        more: Names under which it is reached besides; `ANY_HOST` for every name.
        machine: Name of this machine, under which it is reached from others.
    """

    def __init__(self, listens_on: str, more: Collection[str] = (), *, machine: str | None = None) -> None:
        address = _address(listens_on)
        self._is_loopback = _is_local_name(listens_on) if address is None else address.is_loopback
        self._more = {name.lower() for name in more}
        self._own: set[str] = set()
        if not self._is_loopback:
            machine = (socket.gethostname() if machine is None else machine).lower()
            self._own = {listens_on.lower(), machine, f"{machine}.local"}

    def has(self, host: str) -> bool:
        """Whether a request was meant for this server.

        Args:
            host: Its `Host` header, untrusted.

        Returns:
            True where the name is one of this server.
        """
        name = _name(host)
        if self._is_added(name) or name in self._own or _is_local_name(name):
            return True
        address = _address(name)
        return address is not None and (address.is_loopback or not self._is_loopback)

    def is_own_page(self, origin: str | None, host: str) -> bool:
        """Whether a page may open a socket: browsers name the page's origin, and do not stop pages of other ones.

        Args:
            origin: The `Origin` header, untrusted; None for programs, which send none.
            host: The `Host` header of the same request.

        Returns:
            True for a program, a page of this very address, and one of a name that was added: a proxy may change the
            `Host` header.
        """
        if origin is None:
            return True
        try:
            page = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return page != "" and (page == host.lower() or self._is_added(_name(page)))

    def _is_added(self, name: str) -> bool:
        return ANY_HOST in self._more or name in self._more


class HostCheck:
    """ASGI middleware that refuses requests to other names.

    Args:
        app: The application behind it.
        hosts: The names of this server.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it."""
        host = Headers(scope=scope).get("host", "") if scope["type"] in ("http", "websocket") else None
        if host is None or self._hosts.has(host):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            # Before it is accepted, which answers with 403: no page could read a sentence there.
            await WebSocketClose()(scope, receive, send)
        else:
            reply = reply_for(UnknownHost(host), retry_after_s=0)
            await JSONResponse(reply.body, status_code=reply.status)(scope, receive, send)


def _name(host: str) -> str:
    """The name or address in a `Host` header, without port, brackets and final dot."""
    host = host.strip().lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.removesuffix(".")


def _is_local_name(name: str) -> bool:
    """Names that browsers look up nowhere (RFC 6761)."""
    return name == "localhost" or name.endswith(".localhost")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
