"""The relation kube-control: what is asked of the control plane, and the access that it gives.

The request and the credentials have the form of the library `ops.interface_kube_control`. It is
imported only when they change, because pydantic costs as much as the rest of a hook; an access
that still fits what the relation says is kept in a file of root's.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import urllib.parse
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

import ops

from kata import problems
from kata.cluster import api, credentials, kubelet
from kata.machine import node, tenancy

log = logging.getLogger(__name__)

ENDPOINT = "kube-control"
NODE = "system:node:"  # the user that a kubelet is, before the name of its node
SCHEMAS = "[0, 1]"  # credentials in clear, credentials as a secret
# Charmed Kubernetes sends no CA certificate: it puts it on every machine of the cluster.
CA = "/root/cdk/ca.crt"
# Canonical Kubernetes runs everything on the machine, kubelet included, from this snap.
CANONICAL = "/var/snap/k8s/common"


class Requirer(ops.Object):
    """Our end of kube-control.

    Args:
        charm: the charm.
        machine: the machine that it is on.
    """

    def __init__(self, charm: ops.CharmBase, machine: node.Node) -> None:
        super().__init__(charm, "control-plane")
        self.unit = charm.unit
        self.machine = machine
        self._file = f"{tenancy.STATE}/access-{charm.unit.name.replace('/', '-')}.json"

    def request(self) -> bool:
        """Ask for credentials; return True if the request has changed."""
        relation = self._relation()
        identity = relation and self._identity(relation)
        if not relation or not identity:
            return False
        user, group = identity
        wanted = {"kubelet_user": user, "auth_group": group, "schema_vers": SCHEMAS}
        ours = relation.data[self.unit]
        if all(ours.get(key) == value for key, value in wanted.items()):
            return False
        from ops.interface_kube_control.model import AuthRequest

        asked = AuthRequest.model_validate(wanted)
        form: Any = asked.model_dump(  # pyright: ignore[reportUnknownMemberType]
            exclude_none=True, by_alias=True
        )
        ours.update(cast("dict[str, str]", form))
        return True

    def access(self) -> credentials.Access | None:
        """Return how to reach the API server; None without a relation.

        Raises:
            Waiting: the control plane has not sent everything yet, or something that is no use.
        """
        relation = self._relation()
        if relation is None:
            return None
        user = relation.data[self.unit].get("kubelet_user", "")
        sent = [
            _Sent.of(relation.data[unit], user)
            for unit in sorted(relation.units, key=lambda unit: unit.name)
        ]
        ca = self.machine.read(CA)
        # What is sent to other units may change as it likes.
        source = hashlib.sha256(repr([user, sent, ca]).encode()).hexdigest()
        if kept := credentials.load(self.machine, self._file, source):
            return kept
        try:
            access = self._made(user, sent, ca)
        except _NotSent as error:
            raise problems.Waiting(f"waiting for {relation.app.name}: {error}") from error
        credentials.save(self.machine, self._file, access, source)
        return access

    def last_access(self) -> credentials.Access | None:
        """Return the access that was used last, for hooks that run while the relation goes."""
        return credentials.load(self.machine, self._file)

    def forget(self) -> bool:
        """Forget the credentials, as when a secret has changed; return True if there were any."""
        return self.machine.remove(self._file)

    @contextlib.contextmanager
    def server(self, access: credentials.Access | None = None) -> Generator[api.Server | None]:
        """Give a conversation with the API server; None without a relation.

        Args:
            access: how to reach it; by default as `access` says.

        Raises:
            Waiting: as for `access`.
        """
        access = access or self.access()
        if access is None:
            yield None
            return
        server = api.Server(access)
        try:
            yield server
        finally:
            server.close()
            if server.refused:
                self.forget()  # so that the next event reads what has been sent since

    def _relation(self) -> ops.Relation | None:
        return self.model.get_relation(ENDPOINT)

    # Asking

    def _identity(self, relation: ops.Relation) -> tuple[str, str] | None:
        """Return the user and the group to ask for; None while that is open.

        The leader asks for `system:masters`: no lesser group may write RuntimeClasses. So does
        every unit on Charmed Kubernetes, which hands out the admin's token whatever is asked for.
        On Canonical Kubernetes any other unit asks to be this machine's node, which may label
        itself, and has no rights that the kubelet here does not have anyway.
        """
        unit = f"{self.unit.name}@{self.model.uuid}", "system:masters"
        if self.unit.is_leader():
            return unit
        asked = relation.data[self.unit].get("kubelet_user", "")
        if asked.startswith(NODE):
            return asked, "system:nodes"
        sent = [relation.data[each] for each in relation.units]
        on_canonical = self.machine.exists(CANONICAL)
        # What either control plane sends without being asked, and what only Canonical's does.
        sign = "ca-certificate-secret-id" if on_canonical else "api-endpoints"
        if not any(sign in each for each in sent):
            return None
        if not on_canonical:
            return unit
        # Charmed Kubernetes has kubelets under these names, and would withdraw the token of one
        # when our unit goes. A name that somebody else has asked for is never taken.
        user = f"{NODE}{kubelet.name(self.machine)}"
        entries = (_entry(each.get("creds", ""), user) for each in sent)
        taken = any(entry.get("scope", self.unit.name) != self.unit.name for entry in entries)
        return unit if taken else (user, "system:nodes")

    # Reading what was sent

    def _made(self, user: str, sent: Sequence["_Sent"], ca: str | None) -> credentials.Access:
        """Return the access that the relation's data amounts to."""
        urls = sorted({url for each in sent for url in each.urls})
        if not urls:
            raise _NotSent("it has sent no api-endpoints over kube-control")
        entry = next((each.entry for each in sent if each.entry), None)
        if not user or entry is None:
            raise _NotSent("it has sent no credentials for this unit over kube-control")
        token = self._token(entry, user)
        if secret := next((each.ca_secret for each in sent if each.ca_secret), None):
            ca = self._secret(secret).get("ca-certificate")
        if not ca:
            raise _NotSent(f"it has sent no CA certificate, and there is no {CA}")
        return credentials.Access(urls[0], token, ca, tuple(urls[1:]))

    def _token(self, entry: Mapping[str, Any], user: str) -> str:
        import pydantic
        from ops.interface_kube_control.model import Creds

        try:
            creds: Any = Creds.model_validate(entry)
            # On Charmed Kubernetes the kubelet token is for the user that we asked for, and the
            # client token is the admin's; on Canonical Kubernetes there is only the latter, and
            # it is for our user.
            token = str(
                creds.load_kubelet_token(self.model, user)
                or creds.load_client_token(self.model, user)
            )
        except pydantic.ValidationError as error:
            # Its own words quote what was sent.
            fields = ", ".join(str(each["loc"][0]) for each in error.errors())
            raise _NotSent(f"its credentials over kube-control lack a valid {fields}") from None
        except KeyError as error:
            raise _NotSent(f"its secret over kube-control lacks {error}") from error
        except ops.ModelError as error:
            raise _NotSent("its secret over kube-control is gone or not granted") from error
        if not token or not (token.isascii() and token.isprintable()) or " " in token:
            raise _NotSent("its credentials over kube-control are empty or malformed")
        return token

    def _secret(self, name: str) -> dict[str, str]:
        try:
            return self.model.get_secret(id=name).get_content(refresh=True)
        except ops.ModelError as error:
            raise _NotSent("the secret with its CA certificate is gone or not granted") from error


class _NotSent(Exception):
    """Something is missing in what the control plane has sent."""


@dataclasses.dataclass(frozen=True)
class _Sent:
    """What one unit of the control plane has sent that is for us."""

    urls: tuple[str, ...]
    entry: dict[str, Any]
    ca_secret: str | None

    @classmethod
    def of(cls, data: Mapping[str, str], user: str) -> "_Sent":
        listed = _parsed(data.get("api-endpoints", ""))
        given = cast("list[object]", listed) if isinstance(listed, list) else []
        urls = tuple(url for each in given if _is_https(url := str(each).rstrip("/")))
        entry = _entry(data.get("creds", ""), user)
        return cls(urls, entry, data.get("ca-certificate-secret-id"))


def _is_https(url: str) -> bool:
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and (parts.port or 443) > 0
    return False


def _entry(creds: str, user: str) -> dict[str, Any]:
    """Return what was sent for a user; empty where there is nothing."""
    everyone = _parsed(creds)
    entry: Any = cast("dict[str, Any]", everyone).get(user) if isinstance(everyone, dict) else None
    return cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}


def _parsed(text: str) -> object:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None
