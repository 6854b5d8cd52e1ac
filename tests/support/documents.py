"""Valid documents of each kind with every field set that docs/policy.md calls meaningful; ways through documents."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from spliceway.policy.documents import load_documents

#: Where a value stands: keys and indexes from the document down.
Path = tuple[str | int, ...]

_CILIUM = """
apiVersion: cilium.io/v2
kind: %(kind)s
metadata: {name: a, %(namespace)s annotations: {spliceway.io/enforcement: audit}, labels: {l: m}}
spec:
  description: what it is for
  labels: [{key: k, value: v, source: s}]
  endpointSelector:
    matchLabels: {"k8s:app": web}
    matchExpressions: [{key: tier, operator: NotIn, values: [back, data]}]
  enableDefaultDeny: {ingress: false, egress: false}
  ingress:
  - fromEndpoints:
    - matchLabels: {"any:app": front}
      matchExpressions: [{key: team, operator: In, values: [red, blue]}]
    toPorts:
    - ports: [{port: "80", endPort: 90, protocol: TCP}, {port: web, protocol: TCP}]
      rules:
        http:
        - method: GET
          path: /public
          host: api[.]example
          headers: [X-Trace, "X-Team: red"]
          headerMatches:
          - {name: X-Key, secret: {name: keys, namespace: vault}, value: fallback, mismatch: LOG}
        - {path: /other}
  - {fromCIDR: [192.0.2.0/24, 192.0.2.1]}
  - {fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}, {cidrGroupRef: partners}]}
  - {fromEntities: [host, kube-apiserver]}
  - {fromNodes: [{matchLabels: {zone: a}}]}
  - {fromEndpoints: [{}], icmps: [{fields: [{type: 8, family: IPv6}, {type: EchoReply}]}]}
  egress:
  - {toEndpoints: [{matchLabels: {app: db}}]}
  - {toCIDR: [198.51.100.0/24]}
  - {toCIDRSet: [{cidrGroupSelector: {matchLabels: {kind: partner}}, except: [10.2.0.0/16]}]}
  - {toEntities: [world]}
  - {toNodes: [{matchExpressions: [{key: zone, operator: Exists}]}]}
  - toServices:
    - k8sService: {serviceName: db, namespace: bank}
    - k8sServiceSelector: {selector: {matchLabels: {app: db}}, namespace: bank}
    toPorts: [{ports: [{port: "5432"}]}]
  ingressDeny:
  - {fromEndpoints: [{matchLabels: {app: bad}}], toPorts: [{ports: [{port: "22", protocol: TCP}]}]}
  egressDeny:
  - {toCIDR: ["fd00::/8"], icmps: [{fields: [{type: 128, family: IPv6}]}]}
specs:
- {endpointSelector: {}, ingress: [{}]}
"""
_NETWORK_POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a, namespace: b, annotations: {spliceway.io/enforcement: audit}}
spec:
  podSelector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: DoesNotExist}]}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: front}}
    - {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: front}}}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports: [{port: 80, endPort: 90, protocol: UDP}, {port: web}]
  egress:
  - {to: [{namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [blue]}]}}], ports: [{port: 53}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: types, namespace: b}
spec: {policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}
"""
_SUBJECT = "{pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}}"
_PEERS = """
    - namespaces: {matchLabels: {team: blue}}
    - pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: db}}}"""
_CLUSTER_NETWORK_POLICY = f"""
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{name: a, annotations: {{spliceway.io/enforcement: audit}}}}
spec:
  tier: Baseline
  priority: 10
  subject: {_SUBJECT}
  ingress:
  - action: Pass
    name: first
    from: {_PEERS}
    protocols:
    - tcp: {{destinationPort: {{number: 80}}}}
    - udp: {{destinationPort: {{range: {{start: 5000, end: 5010}}}}}}
    - sctp: {{destinationPort: {{number: 7}}}}
    - destinationNamedPort: web
  egress:
  - action: Accept
    to: {_PEERS}
    - nodes: {{matchLabels: {{zone: a}}}}
    - networks: [10.0.0.0/8, "fd00::/8"]
"""
_ALPHA1 = f"""
apiVersion: policy.networking.k8s.io/v1alpha1
kind: %(kind)s
metadata: {{name: default, annotations: {{spliceway.io/enforcement: audit}}}}
spec:
  %(priority)s
  subject: {_SUBJECT}
  ingress:
  - action: Allow
    name: first
    from: {_PEERS}
    ports:
    - portNumber: {{port: 80, protocol: UDP}}
    - portRange: {{start: 5000, end: 5010, protocol: UDP}}
    - namedPort: web
  egress:
  - action: Allow
    to: {_PEERS}
    - nodes: {{matchLabels: {{zone: a}}}}
    - networks: [10.0.0.0/8]
"""
_OBJECTS = """
apiVersion: v1
kind: Namespace
metadata: {name: a, labels: {team: red}}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: b, labels: {app: web}}
spec:
  nodeName: n
  hostNetwork: true
  serviceAccountName: robot
  containers: [{name: c, ports: [{name: web, containerPort: 80, protocol: UDP}]}]
  initContainers: [{name: c, restartPolicy: Always, ports: [{name: mesh, containerPort: 81}]}]
status: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}], podIP: 10.0.0.1}
---
apiVersion: v1
kind: Node
metadata: {name: a, labels: {zone: a}}
spec: {podCIDRs: [10.0.0.0/24], podCIDR: 10.0.1.0/24}
status: {addresses: [{type: InternalIP, address: 172.30.0.1}, {type: ExternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: b, labels: {app: db}}
spec:
  type: ClusterIP
  selector: {app: db}
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  ipFamilies: [IPv4, IPv6]
  externalIPs: [198.51.100.1]
  loadBalancerSourceRanges: [203.0.113.0/24]
  ports: [{name: sql, protocol: UDP, port: 5432, targetPort: db, nodePort: 30000}]
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  trafficDistribution: PreferClose
  publishNotReadyAddresses: true
  externalName: db.example
status: {loadBalancer: {ingress: [{ip: 192.0.2.9, ipMode: Proxy}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, namespace: b, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, protocol: UDP, port: 5432}]
endpoints:
- addresses: [192.0.2.1]
  conditions: {ready: true}
  nodeName: n
  zone: a
  hints: {forZones: [{name: a}], forNodes: [{name: n}]}
  targetRef: {kind: Pod, namespace: b, name: db-1}
- {addresses: [192.0.2.2], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [192.0.2.3], conditions: {ready: false}}
---
apiVersion: cilium.io/v2alpha1
kind: CiliumCIDRGroup
metadata: {name: a, labels: {l: partner}}
spec: {externalCIDRs: [203.0.113.0/24, "fd00::/64"]}
---
apiVersion: v1
kind: Secret
metadata: {name: a, namespace: b}
data: {token: aHVzaA==}
stringData: {other: plain}
"""

_AUTHORIZATION = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: b, labels: {l: red}, annotations: {istio.io/dry-run: "true"}}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - from:
    - source:
        namespaces: [c]
        notPrincipals: [cluster.local/ns/c/sa/d]
    - source: {ipBlocks: [10.0.0.0/8], notIpBlocks: [10.1.0.0/16]}
    - source: {serviceAccounts: [c/d]}
    to:
    - operation: {ports: ["80"]}
    - operation: {notPorts: ["81"]}
    - operation:
        ports: ["82"]
        methods: [GET]
        notMethods: [HEAD]
        paths: [/a/*]
        notPaths: [/a/b]
        hosts: [a.test]
        notHosts: [b.test]
  - from: [{source: {principals: [cluster.local/ns/c/sa/d], notNamespaces: [e], notServiceAccounts: [c/f]}}]
    when: [{key: source.namespace, values: [c, h], notValues: [g]}, {key: destination.port, notValues: ["83"]}]
"""

_TEXT = "\n---\n".join(
    (
        _CILIUM % {"kind": "CiliumNetworkPolicy", "namespace": "namespace: b,"},
        _CILIUM % {"kind": "CiliumClusterwideNetworkPolicy", "namespace": ""},
        _NETWORK_POLICY,
        _CLUSTER_NETWORK_POLICY,
        _ALPHA1 % {"kind": "AdminNetworkPolicy", "priority": "priority: 10"},
        _ALPHA1 % {"kind": "BaselineAdminNetworkPolicy", "priority": ""},
        _AUTHORIZATION,
        _OBJECTS,
    )
)

#: Documents by kind and name. Take a copy before changing one.
FULL: dict[str, dict[str, Any]] = {
    f"{document.content['kind']} {document.content['metadata']['name']}": document.content
    for document in load_documents(_TEXT, "full.yaml")
}


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place inside a value, from the outside in."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def at(document: Any, path: Path) -> Any:
    """What stands at a place."""
    for key in path:
        document = document[key]
    return document


def without(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """A copy without what stands at a place."""
    changed = copy.deepcopy(document)
    del at(changed, path[:-1])[path[-1]]
    return changed


def replaced(document: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with another value at a place."""
    changed = copy.deepcopy(document)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def written(path: Path) -> str:
    """A place as errors write it: `spec.ingress[0].toPorts`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
