"""AuthorizationPolicies as the API server has them: which are ours, what they were made of, how they should be. Pure.

Ours are known by a label and two annotations, and nothing else is ever changed or deleted: whoever takes one of the
three away has the object. A translation that is another one has another name (`rollout` says why).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from spliceway.agent.manifests import POLICY_KINDS, Key
from spliceway.agent.policystatus.ledger import Version
from spliceway.policy.documents import Document
from spliceway.policy.errors import PolicyError
from spliceway.policy.fields import DNS_SUBDOMAIN
from spliceway.policy.istio.mesh import Foreign, PeerAuthentication, read_document
from spliceway.policy.istio.objects import MANAGED_BY, TRANSLATED_FROM, AuthorizationPolicy
from spliceway.policy.istio.rollout import Name, Shape, shape_of

Json = dict[str, Any]
#: Annotation: version of the policy that it was made of, digest of the specification, and whether it is a bridge.
EMITTED = "spliceway.io/emitted"
#: Label that those of an agent have, and those made by hand don't.
EMITTED_LABEL = ("spliceway.io/emitted", "true")
API_VERSION, KIND = "security.istio.io/v1", "AuthorizationPolicy"
_BRIDGE = "bridge"
_PRINCIPALS = {"principals", "notPrincipals"}
_MAX_NAME = 253


class Held(msgspec.Struct, frozen=True):
    """One of ours. `source`: the policy; `version`: as it was then; `digest`: of what its specification was to be."""

    metadata: Json
    spec: Json
    shape: Shape
    source: Key
    version: str
    digest: str

    @property
    def revision(self) -> str:
        """Its resourceVersion."""
        return str(self.metadata.get("resourceVersion", ""))

    @property
    def uid(self) -> str:
        """Of the policy."""
        return Version.parse(self.version).uid

    @property
    def generation(self) -> int:
        """Of the policy."""
        return Version.parse(self.version).generation

    @property
    def is_whole(self) -> bool:
        """Whether nobody has edited its specification."""
        return digest_of(self.shape.namespace, self.spec) == self.digest

    @property
    def is_going(self) -> bool:
        """Whether it is being deleted, and something holds it up."""
        return "deletionTimestamp" in self.metadata


class Made(msgspec.Struct, frozen=True):
    """One that is wanted, or a bridge: the object, without what the server adds."""

    document: Json
    shape: Shape
    source: Key


def made(policy: AuthorizationPolicy, version: str, *, bridge: bool = False) -> Made:
    """The object for a translation of this version of its policy; the name of what is no bridge tells what it says."""
    document = policy.document()
    digest = digest_of(policy.namespace, document["spec"])
    name = policy.name if bridge else f"{policy.name[: _MAX_NAME - 11].rstrip('-.')}-{digest[:10]}"
    metadata = document["metadata"]
    metadata["name"] = name
    metadata["labels"] = dict([MANAGED_BY, EMITTED_LABEL])
    metadata["annotations"][EMITTED] = " ".join((version, digest, *([_BRIDGE] if bridge else [])))
    shape = msgspec.structs.replace(shape_of(policy), name=name, bridge=bridge)
    return Made(document, shape, _source(policy.origin))


def restored(wanted: Json, held: Held) -> Json:
    """The object as it should be, in place of that revision of it; what others have added to its metadata stays."""
    metadata = dict(held.metadata)
    for field in ("labels", "annotations"):
        metadata[field] = {**(metadata.get(field) or {}), **wanted["metadata"][field]}
    return {**wanted, "metadata": metadata}


def recreated(held: Held) -> Json:
    """The object as it was, without what the server adds."""
    metadata = {name: held.metadata.get(name) for name in ("name", "namespace", "labels", "annotations")}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": held.spec}


def moved(held: Held, trust_domain: str) -> Made | None:
    """What it is in a mesh that calls itself so: another object, as any that says something else; None: what it is.

    A translation means pods of its own mesh alone, by trust domain, namespace and service account.
    """
    rules = held.spec.get("rules") or []
    spec = {**held.spec, **_renamed({"rules": rules}, trust_domain)}
    if held.shape.bridge or spec["rules"] == rules:
        return None
    end = f"-{held.digest[:10]}"
    digest = digest_of(held.shape.namespace, spec)
    document = {**recreated(held), "spec": spec}
    name = f"{held.shape.name.removesuffix(end)}-{digest[:10]}"
    annotations = {**held.metadata["annotations"], EMITTED: f"{held.version} {digest}"}
    document["metadata"] = {**document["metadata"], "name": name, "annotations": annotations}
    return Made(document, msgspec.structs.replace(held.shape, name=name), held.source)


def is_as_wanted(held: Held, wanted: Made) -> bool:
    """Whether there is nothing to restore."""
    annotations = held.metadata.get("annotations") or {}
    told = wanted.document["metadata"]["annotations"]
    labels = held.metadata.get("labels") or {}
    return (
        held.spec == wanted.document["spec"]
        and all(annotations.get(key) == value for key, value in told.items())
        and EMITTED_LABEL in labels.items()
    )


def own(content: Mapping[str, Any]) -> Held | None:
    """What an object is to us; None: it is somebody else's."""
    metadata = content.get("metadata") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    spec = content.get("spec") or {}
    if MANAGED_BY not in labels.items() or not isinstance(told := annotations.get(EMITTED), str):
        return None
    if not isinstance(origin := annotations.get(TRANSLATED_FROM), str) or not isinstance(spec, dict):
        return None
    version, _, rest = told.partition(" ")
    digest, _, bridge = rest.partition(" ")
    try:
        Version.parse(version)
    except ValueError:
        return None
    shape = _shape(metadata, spec, bridge=bridge == _BRIDGE)
    if not _is_possible(source := _source(origin), shape.namespace):
        return None
    kept = {key: value for key, value in metadata.items() if key != "managedFields"}
    return Held(kept, spec, shape, source, version, digest)


def others(content: Mapping[str, Any]) -> tuple[Shape, Foreign | None]:
    """Somebody else's object: its shape, and what keeps the translation from being all that holds; None: nothing.

    What can't be read may be about every workload. A translation that was applied by hand is somebody else's, too.
    """
    metadata, spec = content.get("metadata") or {}, content.get("spec") or {}
    namespace, name = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
    shape = _shape(metadata, spec if isinstance(spec, dict) else {}, bridge=False)
    unmarked = {key: value for key, value in metadata.items() if key not in ("labels", "annotations")}
    try:
        read = read_document(
            Document(f"kubernetes:AuthorizationPolicy/{namespace}/{name}", 1, 1, {**content, "metadata": unmarked})
        )
    except PolicyError:
        return shape, Foreign(namespace, name)
    return shape, read.foreign[0] if read.foreign else None


def authentication(content: Mapping[str, Any]) -> PeerAuthentication:
    """A PeerAuthentication; what can't be read asks nobody for a certificate."""
    metadata = content.get("metadata") or {}
    namespace, name = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
    unmarked = {key: value for key, value in metadata.items() if key not in ("labels", "annotations")}
    told = {key: value for key, value in content.items() if key != "status"}
    try:
        read = read_document(
            Document(f"kubernetes:PeerAuthentication/{namespace}/{name}", 1, 1, {**told, "metadata": unmarked})
        )
    except PolicyError:
        return PeerAuthentication(namespace, name, {}, "PERMISSIVE")
    return read.authentications[0]


def digest_of(namespace: str, spec: Json) -> str:
    """Of a specification in its namespace: 16 hexadecimal digits."""
    text = msgspec.json.encode([namespace, spec], order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


def name_of(content: Mapping[str, Any]) -> Name:
    """Namespace and name."""
    metadata = content["metadata"]
    return str(metadata.get("namespace", "")), str(metadata["name"])


def _renamed(value: Any, trust_domain: str) -> Any:
    """The same with this trust domain in all principals («domain/ns/namespace/…»)."""
    if isinstance(value, list):
        return [_renamed(one, trust_domain) for one in value]
    if not isinstance(value, dict):
        return value
    found = {key: _renamed(one, trust_domain) for key, one in value.items()}
    for key in _PRINCIPALS & value.keys():
        if isinstance(value[key], list):  # whose digest is right may be anybody's all the same
            parts = [str(one).partition("/ns/") for one in value[key]]
            found[key] = [f"{trust_domain}{slash}{rest}" if slash else domain for domain, slash, rest in parts]
    return found


def _shape(metadata: Mapping[str, Any], spec: Json, *, bridge: bool) -> Shape:
    selector = spec.get("selector")
    labels = selector.get("matchLabels") if isinstance(selector, Mapping) else None
    targets = spec.get("targetRefs") or ([spec["targetRef"]] if spec.get("targetRef") else [])
    names = [str(one.get("name")) for one in targets if isinstance(one, Mapping)] if isinstance(targets, list) else []
    pairs = (
        tuple(sorted((str(key), str(value)) for key, value in labels.items())) if isinstance(labels, Mapping) else ()
    )
    namespace, name = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
    return Shape(namespace, name, str(spec.get("action", "ALLOW")), pairs, tuple(names), bridge)


def _is_possible(source: Key, namespace: str) -> bool:
    """Whether we may have made an object here of such a policy: who writes in one namespace has no say in others'."""
    kind, path = source
    own, slash, name = path.rpartition("/")
    return kind in POLICY_KINDS and DNS_SUBDOMAIN.fullmatch(name) is not None and (not slash or own == namespace)


def _source(origin: str) -> Key:
    """«CiliumNetworkPolicy shop/web»."""
    kind, _, name = origin.partition(" ")
    return kind, name
