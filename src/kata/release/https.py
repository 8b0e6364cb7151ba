"""Requests for files over https: what may be asked, followed and believed.

`Failed` may pass by itself. Everything else that can go wrong is put into words for the operator.
"""

import contextlib
import ipaddress
import os
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Mapping
from http.client import HTTPException, HTTPResponse, InvalidURL
from typing import Any

from kata import problems


class Failed(Exception):
    """A request that may succeed if it is made again.

    Attributes:
        wait: seconds that the server asks to wait before.
        nameless: its name could not be looked up, which may have taken a quarter of a minute.
    """

    def __init__(self, reason: str, wait: float = 0, *, nameless: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.nameless = nameless


class Answered(Exception):
    """The server answered with another status than 200 and 206.

    Attributes:
        status: such as 404.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}".strip())
        self.status = status


def get(url: str, headers: Mapping[str, str], timeout: float) -> HTTPResponse:
    """Ask for a file, by the proxies of the environment.

    Args:
        url: an https address; an http one is taken too, and never comes of an https one.
        headers: of the request. Empty ones are left out.
        timeout: seconds to wait for the connection, and for each piece of the answer.

    Raises:
        Failed: it may be tried again.
        Answered: with neither 200 nor 206.
        Blocked: the address, the certificate or the redirection will not do.
    """
    sent = {name: value for name, value in headers.items() if value}
    with worded(url, timeout):
        try:
            request = urllib.request.Request(url, headers=sent)  # noqa: S310 - see _opener
            return _opener(url).open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (408, 425, 429) or error.code >= 500:
                    wait = str(error.headers.get("Retry-After", ""))
                    seconds = min(float(wait), 60) if wait.isdigit() else 0
                    raise Failed(f"{error.code} {error.reason}", seconds) from error
                raise Answered(error.code, str(error.reason)) from error


@contextlib.contextmanager
def worded(url: str, timeout: float) -> Generator[None]:
    """Turn what a network does to a request into the errors of `get`."""
    host = urllib.parse.urlsplit(url).hostname or url
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:
        # urllib wraps the cause.
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise problems.Blocked(
                f"the certificate of {host} is not trusted: {cause.verify_message}; "
                "install its CA on the machine, or correct archive-url"
            ) from error
        if isinstance(error, (ValueError, InvalidURL)):
            raise problems.Blocked(f"option archive-url: {error}; correct it") from error
        if isinstance(cause, TimeoutError):
            raise Failed(f"nothing came for {timeout:g} s") from error
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise Failed(reason, nameless=isinstance(cause, socket.gaierror)) from error


class _NothingInTheClear(urllib.request.BaseHandler):
    def http_request(self, req: Any) -> Any:
        raise problems.Blocked(
            f"https leads on to http ({req.host}), which is not followed; correct archive-url"
        )


class _Proxies(urllib.request.ProxyHandler):
    def proxy_open(self, req: Any, proxy: str, type: str) -> Any:  # noqa: A002 - urllib's name
        return None if _in_no_proxy(req.host) else super().proxy_open(req, proxy, type)


def _opener(url: str) -> Any:
    """Return an opener for http and https alone: urllib's own would read file:// and ftp:// too."""
    opener = urllib.request.OpenerDirector()
    if urllib.parse.urlsplit(url).scheme == "https":
        opener.add_handler(_NothingInTheClear())
    for handler in (
        _Proxies,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPRedirectHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _in_no_proxy(host: str) -> bool:
    """Tell whether no_proxy names a network that the host is in: urllib knows names only."""
    try:
        address = ipaddress.ip_address(urllib.parse.urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
    for each in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
        with contextlib.suppress(ValueError):
            if "/" in each and address in ipaddress.ip_network(each.strip(), strict=False):
                return True
    return False
