"""What the status object of a policy is called. Pure."""

from __future__ import annotations

import hashlib

from spliceway.agent.manifests import Key
from spliceway.agent.policystatus.resources import CLUSTERWIDE, NAMESPACED
from spliceway.agent.sources.kubernetes.resources import Resource

#: The longest name of an object (a DNS subdomain).
_MOST = 253


def status_name(key: Key) -> tuple[Resource, str, str]:
    """Of a policy (kind, «namespace/name»): the kind of its status, and its namespace (empty: none) and name.

    No two policies have the same: kinds have no dots, and names that would be too long are exactly as long as names may
    be, which no other is.
    """
    kind, path = key
    namespace, slash, name = path.rpartition("/")
    return (NAMESPACED if slash else CLUSTERWIDE), namespace, _short(f"{kind.lower()}.{name}", path)


def path_of(resource: Resource, namespace: str, name: str = "") -> str:
    """Below the server's root; without a name, of all in the namespace (empty: of the cluster)."""
    root = resource.path(resource.versions[0]).rpartition("/")[0]
    middle = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{middle}/{resource.plural}" + (f"/{name}" if name else "")


def event_name(name: str, mark: str) -> str:
    """Of an Event about an object of this name; the same mark, the same name."""
    return f"{name[:200].rstrip('-.')}.{digest(mark)}"


def digest(text: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _short(name: str, path: str) -> str:
    if len(name) < _MOST:
        return name
    mark = hashlib.sha256(path.encode()).hexdigest()[:32]
    room = _MOST - len(mark) - 1
    # A part of a subdomain ends with a letter or a digit.
    return f"{name[:room].rstrip('-.'):0<{room}}-{mark}"
