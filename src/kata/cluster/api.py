"""The Kubernetes API server as a hook meets it: a short conversation, and words where it fails.

Reads go through the standard library: most hooks read an object, find it right and are done, and
lightkube would cost them more CPU time than all the rest. Writes are rare and use lightkube.

Juju's proxies are for the way out of the site. The API server is on the inside, where the node's
kubelet talks to it directly, so no proxy is ever used here.
"""

import contextlib
import http.client
import json
import logging
import os
import re
import socket
import ssl
import textwrap
import time
import urllib.parse
from collections.abc import Generator
from typing import TYPE_CHECKING, cast

from kata import problems
from kata.cluster import credentials
from kata.cluster.managed_fields import MANAGER, Manifest, mapping

if TYPE_CHECKING:
    import lightkube
    from lightkube.core.resource import GlobalResource

TIMEOUT = 5.0
"""Seconds that the server may be silent."""

PATIENCE = 20.0
"""Seconds that one whole answer may take."""

LARGEST = 8 * 1024 * 1024
"""Bytes of the largest answer that is read; a Node object has some 50 kB."""

# Its words count, not the frame around them (Kubernetes, apiserver, webhook/errors).
_WEBHOOK = re.compile(r'admission webhook "(.+?)" denied the request:? *')


class Refused(problems.Waiting):
    """The credentials or the certificates no longer fit: others may have been handed out."""


class Forbidden(problems.Waiting):
    """The credentials do not reach that far."""


class Absent(problems.Waiting):
    """The object that was to be changed is not there."""


class Server:
    """A conversation with the API server, over one connection; `close` ends it.

    Attributes:
        refused: whether the credentials or the certificates turned out not to fit.
    """

    def __init__(self, access: credentials.Access) -> None:
        self.access = access
        self.refused = False
        self._url = access.server
        self._connection: http.client.HTTPSConnection | None = None

    def close(self) -> None:
        """End the conversation; the next read begins another."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def read(self, path: str, **query: str) -> Manifest | None:
        """Return the object or the list at a path; None if there is no such object.

        Args:
            path: such as `/api/v1/nodes/one`.
            query: such as `labelSelector`.

        Raises:
            Waiting: it cannot be had now.
        """
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        status, body = self._exchange(target)
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(body)
            fits = isinstance(said, dict) and mapping(said).get("kind") != "Status"
            if status == http.HTTPStatus.OK and fits:
                return cast("Manifest", said)
            # An API that the server does not have at all is not found either, but has no name.
            if status == http.HTTPStatus.NOT_FOUND and mapping(said, "details").get("name"):
                return None
        raise self._problem(status, _message(body), f"get {path.partition('/v1/')[2]}")

    def apply(self, made: Manifest, *, force: bool) -> None:
        """Send an object by server-side apply, as the manager of all that it says.

        Args:
            made: the object. With a uid, only that very object is changed and none is created.
            force: take over fields that others manage.

        Raises:
            Waiting: it cannot be done now.
        """
        from lightkube import codecs

        with self._writing(f"patch {made['kind']} {made['metadata']['name']}") as client:
            client.apply(codecs.from_dict(made), field_manager=MANAGER, force=force)

    def delete(self, resource: "type[GlobalResource]", name: str) -> None:
        """Delete an object.

        Raises:
            Absent: there is none.
            Waiting: it cannot be done now.
        """
        with self._writing(f"delete {resource.__name__} {name}") as client:
            client.delete(resource, name)

    def delete_pod(self, namespace: str, name: str) -> None:
        """Delete a pod at once.

        Raises:
            Absent: there is none.
            Waiting: it cannot be done now.
        """
        from lightkube.resources.core_v1 import Pod

        with self._writing(f"delete Pod {name}") as client:
            client.delete(Pod, name, namespace=namespace, grace_period=0)

    @contextlib.contextmanager
    def _writing(self, asked: str) -> Generator["lightkube.Client"]:
        """Give a lightkube client, and put into words what goes wrong with it."""
        import httpx2
        import lightkube
        from lightkube.config.models import Cluster, User

        # Every record of a hook is a process of its own, and these have a dozen per request.
        for chatty in ("httpx2", "httpcore2"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        config = lightkube.KubeConfig.from_one(
            cluster=Cluster(server=self._url), user=User(token=self.access.token)
        )
        transport = httpx2.HTTPTransport(verify=self._context(), trust_env=False)
        try:
            with lightkube.Client(
                config, timeout=httpx2.Timeout(TIMEOUT), trust_env=False, transport=transport
            ) as client:
                yield client
        except lightkube.ApiError as error:
            status = error.status.code or error.response.status_code
            raise self._problem(status, error.status.message or "", asked) from error
        except httpx2.HTTPStatusError as error:
            answer = error.response
            raise self._problem(answer.status_code, _message(answer.content), asked) from error
        except httpx2.HTTPError as error:
            cause = _cause(error)
            raise self._waiting(self._words(cause) if cause else str(error)) from error
        except (KeyError, ValueError, RecursionError) as error:
            # lightkube 1.0 expects a content type and well-formed JSON.
            raise self._waiting("its answer is not Kubernetes'") from error

    # The conversation

    def _exchange(self, target: str) -> tuple[int, bytes]:
        """Send a GET, and return the status and the body."""
        headers = {
            "Accept": "application/json",
            "Authorization": f"Bearer {self.access.token}",
            "User-Agent": "kata-charm",
        }
        connection = self._connection or self._connect()
        until = time.monotonic() + PATIENCE
        try:
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as answer:
                body = bytearray()
                while part := answer.read1(65536):
                    body += part
                    if len(body) > LARGEST:
                        raise self._waiting(f"its answer has more than {LARGEST >> 20} MiB")
                    if time.monotonic() > until:
                        raise TimeoutError
        except http.client.HTTPException as error:
            raise self._waiting("its answer is not HTTP, or ends half-way") from error
        except OSError as error:
            raise self._waiting(self._words(error)) from error
        return answer.status, bytes(body)

    def _connect(self) -> http.client.HTTPSConnection:
        """Connect to the first URL that answers."""
        context, failures = self._context(), dict[str, OSError]()
        for url in (self.access.server, *self.access.others):
            parts = urllib.parse.urlsplit(url)
            if parts.scheme != "https" or not parts.hostname:
                continue
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port or 443, timeout=TIMEOUT, context=context
            )
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                failures[url] = error
                continue
            self._url, self._connection = url, connection
            return connection
        if not failures:
            raise self._waiting("its address is not an https URL")
        self._url, first = next(iter(failures.items()))
        raise self._waiting(self._words(first)) from first

    def _context(self) -> ssl.SSLContext:
        # Not ssl.create_default_context: it trusts the machine's CAs where none is given, and
        # from Python 3.13 on asks more of a certificate than kubectl and kubelet do.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cadata=self.access.ca)
        except (ValueError, ssl.SSLError) as error:
            self.refused = True
            raise self._waiting("the CA certificate handed out for it is not valid PEM") from error
        return context

    # What went wrong

    def _words(self, error: OSError) -> str:
        if isinstance(error, ssl.SSLCertVerificationError):
            self.refused = True
            return f"its certificate is not the one expected ({error.verify_message})"
        if isinstance(error, TimeoutError):
            return f"no answer within {TIMEOUT:g} s"
        if isinstance(error, ssl.SSLError):
            return f"TLS failed ({error.reason})"
        if isinstance(error, socket.gaierror):
            return "its name cannot be resolved"
        return os.strerror(error.errno) if error.errno else "it hung up without an answer"

    def _waiting(self, why: str) -> problems.Waiting:
        self.close()  # nobody knows what is still to come on it
        return (Refused if self.refused else problems.Waiting)(self._line(why))

    def _line(self, why: str) -> str:
        place = urllib.parse.urlsplit(self._url).netloc
        # What a server says is shown, but never what was given to it in confidence.
        why = textwrap.shorten(why.replace(self.access.token, "…"), 95, placeholder=" …")
        return f"control plane {place}: {why}; tried again at the next event"

    def _problem(self, status: int, message: str, asked: str) -> problems.Waiting:
        """Return what an answer other than the expected one means."""
        if status == http.HTTPStatus.UNAUTHORIZED:
            self.refused = True
            return Refused(self._line("it refuses our credentials (401)"))
        if status == http.HTTPStatus.FORBIDDEN and not _WEBHOOK.match(message):
            return Forbidden(self._line(f"it does not let us {asked} (403)"))
        if status == http.HTTPStatus.NOT_FOUND:
            return Absent(self._line(f"it has nothing to {asked} (404)"))
        if status == http.HTTPStatus.OK:
            return self._waiting("its answer is not Kubernetes'")
        message = _WEBHOOK.sub(r"\1: ", message)
        return self._waiting(f"cannot {asked} ({status}{': ' if message else ''}{message})")


def _cause(error: BaseException | None) -> OSError | None:
    """Return the error of the system behind one of a library."""
    while error and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _message(body: bytes) -> str:
    """Return what a body says: a Status object, Kubernetes' answer to what it does not do, or text."""
    try:
        return str(mapping(json.loads(body)).get("message", ""))
    except (ValueError, RecursionError):
        return body[:2000].decode(errors="replace")
