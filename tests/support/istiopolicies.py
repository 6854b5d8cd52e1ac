"""A small cluster in a mesh, as text, and what becomes of policies in it."""

from __future__ import annotations

from typing import Any

from spliceway.policy.documents import load_documents
from spliceway.policy.istio.httprules import Ambiguous, Meaning, Normalization
from spliceway.policy.istio.mesh import Mesh, read_document
from spliceway.policy.istio.translate import Options, Translation, translate
from spliceway.policy.model import Cluster

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""
CLUSTER = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled, team: red}}
---
apiVersion: v1
kind: Namespace
metadata: {name: bank, labels: {istio-injection: enabled, team: blue}}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [10.240.1.0/24, "fd00:240:1::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec:
  nodeName: node1
  serviceAccountName: api
  containers: [{ports: [{name: web, containerPort: 8080}]}]
status: {podIPs: [{ip: 10.240.1.2}, {ip: "fd00:240:1::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: front, namespace: shop, labels: {app: front}}
spec: {nodeName: node1, serviceAccountName: front}
status: {podIPs: [{ip: 10.240.1.3}, {ip: "fd00:240:1::3"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: teller, namespace: bank, labels: {app: front}}
spec: {nodeName: node1}
status: {podIPs: [{ip: 10.240.1.4}]}
"""
ALONE = Options(meaning=Meaning(ambiguous=Ambiguous.REFUSE))
EVERYTHING = Options(meaning=Meaning(Normalization.DECODE_AND_MERGE_SLASHES, Ambiguous.PASS))


def policy(spec: str, kind: str = "CiliumNetworkPolicy", name: str = "web", namespace: str = "shop") -> str:
    """A policy as text."""
    metadata = f"{{name: {name}" + (f", namespace: {namespace}}}" if namespace else "}")
    body = "\n".join(f"  {line}" for line in spec.strip("\n").splitlines())
    return f"apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {metadata}\nspec:\n{body}\n"


def allow(http: str, peers: str = "fromEndpoints: [{matchLabels: {app: front}}]", port: str = "80") -> str:
    """A policy for pods `app: api` with these HTTP rules."""
    return policy(
        f"endpointSelector: {{matchLabels: {{app: api}}}}\n"
        f"ingress: [{{{peers}{', ' if peers else ''}toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}], "
        f"rules: {{http: [{http}]}}}}]}}]"
    )


def read(*texts: str) -> tuple[Cluster, Mesh]:
    """What these documents say."""
    reads = [read_document(one) for text in texts for one in load_documents(text, "test.yaml")]
    return Cluster().with_objects(item for one in reads for item in one.objects), Mesh(
        tuple(item for one in reads for item in one.authentications),
        tuple(item for one in reads for item in one.foreign),
        {key: told for one in reads for key, told in one.annotations.items()},
    )


def made(*texts: str, options: Options | None = None, strict: bool = True, cluster: str = CLUSTER) -> Translation:
    """What CLUSTER with these documents, and with STRICT mTLS, becomes."""
    return translate(*read(cluster, *texts, *([STRICT] if strict else [])), options)


def specs(found: Translation) -> list[dict[str, Any]]:
    """Specifications of what came out, when nothing was refused."""
    assert found.refusals == ()
    return [one.document()["spec"] for one in found.policies]


def refusal(found: Translation) -> str:
    """Why nothing came out."""
    assert found.policies == ()
    return "\n".join(map(str, found.refusals))
