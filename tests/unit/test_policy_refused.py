"""What is refused, with the exact message: file, document, field, reason."""
# ruff: noqa: E501

from __future__ import annotations

import pytest

from spliceway.policy.parse import parse_text

HEAD = """apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
"""
NAME = "p.yaml: CiliumNetworkPolicy default/web"


def spec(body: str) -> str:
    return f"{HEAD}spec: {{endpointSelector: {{}}, {body}}}\n"


def ports(body: str) -> str:
    return spec(f"ingress: [{{toPorts: [{{{body}}}]}}]")


PORT = "spec.ingress[0].toPorts[0].ports[0]"
HTTP = "spec.ingress[0].toPorts[0].rules.http[0]"
TCP_80 = "ports: [{port: '80', protocol: TCP}]"

REFUSED = [
    # Ports and protocols
    (ports("ports: [{port: '70000'}]"), f"{NAME}: {PORT}.port: 70000 is not a port (1 to 65535)"),
    (ports("ports: [{port: 70000}]"), f"{NAME}: {PORT}.port: 70000 is not a port (1 to 65535)"),
    (ports("ports: [{port: '-1'}]"), f"{NAME}: {PORT}.port: -1 is not a port (1 to 65535, or a name)"),
    (ports("ports: [{port: '080'}]"), f"{NAME}: {PORT}.port: 080 is not a port (1 to 65535, or a name)"),
    (ports("ports: [{port: a_b}]"), f"{NAME}: {PORT}.port: a_b is not a port (1 to 65535, or a name)"),
    (ports("ports: [{port: a--b}]"), f"{NAME}: {PORT}.port: a--b is not a port (1 to 65535, or a name)"),
    (
        ports("ports: [{port: sixteen-letters1}]"),
        f"{NAME}: {PORT}.port: sixteen-letters1 is not a port (1 to 65535, or a name)",
    ),
    (ports("ports: [{port: http, endPort: 90}]"), f"{NAME}: {PORT}.endPort: a named port has no range"),
    (ports("ports: [{port: true}]"), f"{NAME}: {PORT}.port: must be a string, is true or false (True)"),
    (ports("ports: [{protocol: TCP}]"), f"{NAME}: {PORT}.port: is missing"),
    (
        ports("ports: [{port: '80', protocol: HTTP}]"),
        f"{NAME}: {PORT}.protocol: HTTP is not a protocol (TCP, UDP, SCTP, ANY)",
    ),
    (
        ports("ports: [{port: '8', protocol: ICMP}]"),
        f"{NAME}: {PORT}.protocol: ICMP has no ports (use icmps)",
    ),
    (ports("ports: [{port: '80', endPort: 79}]"), f"{NAME}: {PORT}.endPort: 79 is not a port from 80 to 65535"),
    (ports("ports: [{port: '80', endPort: 70000}]"), f"{NAME}: {PORT}.endPort: 70000 is not a port from 80 to 65535"),
    (ports("ports: [{port: '0', endPort: 9}]"), f"{NAME}: {PORT}.endPort: port 0 means every port and has no range"),
    (ports("ports: [{port: '80', prot: TCP}]"), f"{NAME}: {PORT}.prot: unknown field"),
    (
        ports("ports: []"),
        f"{NAME}: spec.ingress[0].toPorts[0].ports: needs at least one port (for every port, leave toPorts out)",
    ),
    (
        ports("ports: [" + ", ".join(["{port: '80'}"] * 41) + "]"),
        f"{NAME}: spec.ingress[0].toPorts[0].ports: 41 ports are more than 40",
    ),
    (ports(f"{TCP_80}, listener: {{}}"), f"{NAME}: spec.ingress[0].toPorts[0].listener: not supported yet"),
    (ports(f"{TCP_80}, terminatingTLS: {{}}"), f"{NAME}: spec.ingress[0].toPorts[0].terminatingTLS: not supported yet"),
    (ports(f"{TCP_80}, serverNames: [a]"), f"{NAME}: spec.ingress[0].toPorts[0].serverNames: not supported yet"),
    # HTTP
    (
        ports("ports: [{port: '80'}], rules: {http: [{path: /}]}"),
        f"{NAME}: {PORT}.protocol: HTTP rules need protocol TCP, not ANY",
    ),
    (
        ports("ports: [{port: '80', protocol: UDP}], rules: {http: [{path: /}]}"),
        f"{NAME}: {PORT}.protocol: HTTP rules need protocol TCP, not UDP",
    ),
    (
        ports("ports: [{port: '0', protocol: TCP}], rules: {http: [{path: /}]}"),
        f"{NAME}: {PORT}.port: HTTP rules need a port, not 0",
    ),
    (
        ports(f"{TCP_80}, rules: {{http: [{{path: '('}}]}}"),
        f"{NAME}: {HTTP}.path: (: not an RE2 expression: missing ): (",
    ),
    (
        ports(f"{TCP_80}, rules: {{http: [{{path: '/(?!x)'}}]}}"),
        f"{NAME}: {HTTP}.path: /(?!x): not an RE2 expression: invalid perl operator: (?!",
    ),
    (
        ports(f"{TCP_80}, rules: {{http: [{{method: '[a-z]{{500}}[a-z]{{500}}'}}]}}"),
        f"{NAME}: {HTTP}.method: [a-z]{{500}}[a-z]{{500}}: too large: RE2 program size 1004 is more than 1000",
    ),
    (
        ports(f"{TCP_80}, rules: {{http: [{{path: /é}}]}}"),
        f"{NAME}: {HTTP}.path: /é: only ASCII is allowed in an expression (write \\xNN for other bytes)",
    ),
    (ports(f"{TCP_80}, rules: {{http: [{{path: 1}}]}}"), f"{NAME}: {HTTP}.path: must be a string, is an integer (1)"),
    (ports(f"{TCP_80}, rules: {{http: [{{paht: /}}]}}"), f"{NAME}: {HTTP}.paht: unknown field"),
    (ports(f"{TCP_80}, rules: {{dns: []}}"), f"{NAME}: spec.ingress[0].toPorts[0].rules.dns: not supported yet"),
    (ports(f"{TCP_80}, rules: {{kafka: []}}"), f"{NAME}: spec.ingress[0].toPorts[0].rules.kafka: not supported yet"),
    (
        ports(f"{TCP_80}, rules: {{http: []}}"),
        f"{NAME}: spec.ingress[0].toPorts[0].rules.http: needs at least one rule (to allow every request, leave rules out)",
    ),
    (
        ports(f"{TCP_80}, rules: {{}}"),
        f"{NAME}: spec.ingress[0].toPorts[0].rules.http: needs at least one rule (to allow every request, leave rules out)",
    ),
    (
        spec(f"ingressDeny: [{{toPorts: [{{{TCP_80}, rules: {{http: [{{path: /}}]}}}}]}}]"),
        f"{NAME}: spec.ingressDeny[0].toPorts[0].rules: not allowed in deny rules",
    ),
    # Peers
    (
        spec("ingress: [{fromCIDR: [10.0.0.0/33]}]"),
        f"{NAME}: spec.ingress[0].fromCIDR[0]: 10.0.0.0/33 is not a CIDR (prefix length 0 to 32)",
    ),
    (spec("ingress: [{fromCIDR: [10.0.0/8]}]"), f"{NAME}: spec.ingress[0].fromCIDR[0]: 10.0.0 is not an IP address"),
    (
        spec("ingress: [{fromCIDR: [10.0.0.0/255.0.0.0]}]"),
        f"{NAME}: spec.ingress[0].fromCIDR[0]: 10.0.0.0/255.0.0.0 is not a CIDR (prefix length 0 to 32)",
    ),
    (spec("ingress: [{fromCIDR: ['']}]"), f"{NAME}: spec.ingress[0].fromCIDR[0]: '' is not an IP address"),
    (
        spec("egress: [{toCIDR: ['fd00::/129']}]"),
        f"{NAME}: spec.egress[0].toCIDR[0]: fd00::/129 is not a CIDR (prefix length 0 to 128)",
    ),
    (
        spec("egress: [{toCIDR: ['::ffff:10.0.0.1/128']}]"),
        f"{NAME}: spec.egress[0].toCIDR[0]: ::ffff:10.0.0.1 is not an address of packets (IPv4-mapped or with a zone)",
    ),
    (
        spec("egress: [{toCIDRSet: [{cidr: 10.0.0.1}]}]"),
        f"{NAME}: spec.egress[0].toCIDRSet[0].cidr: 10.0.0.1 is not a CIDR (no prefix length)",
    ),
    (
        spec("egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}]"),
        f"{NAME}: spec.egress[0].toCIDRSet[0].except[0]: 11.0.0.0/16 is not inside 10.0.0.0/8",
    ),
    (
        spec("egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: ['fd00::/64']}]}]"),
        f"{NAME}: spec.egress[0].toCIDRSet[0].except[0]: fd00::/64 is not inside 10.0.0.0/8",
    ),
    (
        spec("egress: [{toEntities: [moon]}]"),
        f"{NAME}: spec.egress[0].toEntities[0]: moon is not an entity (all, world, world-ipv4, world-ipv6, host, remote-node, cluster, cluster-mesh, kube-apiserver, unmanaged, init, health, ingress, none)",
    ),
    (
        spec("ingress: [{fromEndpoints: [{}], fromCIDR: [10.0.0.0/8]}]"),
        f"{NAME}: spec.ingress[0]: combining fromEndpoints and fromCIDR is not supported, as in Cilium (write two rules)",
    ),
    *(
        (spec(f"egress: [{{{field}: []}}]"), f"{NAME}: spec.egress[0].{field}: not supported yet")
        for field in ("toFQDNs", "toGroups", "toRequires", "authentication")
    ),
    *(
        (spec(f"ingress: [{{{field}: []}}]"), f"{NAME}: spec.ingress[0].{field}: not supported yet")
        for field in ("fromRequires", "fromGroups", "authentication")
    ),
    (spec("ingress: [{toEndpoints: [{}]}]"), f"{NAME}: spec.ingress[0].toEndpoints: unknown field"),
    (spec("ingress: [{fromEndpoint: [{}]}]"), f"{NAME}: spec.ingress[0].fromEndpoint: unknown field"),
    (spec("ingress: {}"), f"{NAME}: spec.ingress: must be a list, is a mapping ({{}})"),
    (spec("ingress: [null]"), f"{NAME}: spec.ingress[0]: must be a mapping, is null"),
    # Selectors
    (
        f"{HEAD}spec: {{endpointSelector: {{matchLabels: {{role: 5}}}}, ingress: []}}",
        f"{NAME}: spec.endpointSelector.matchLabels.role: must be a string, is an integer (5)",
    ),
    (
        f"{HEAD}spec: {{endpointSelector: {{matchLabels: {{role: yes}}}}, ingress: []}}",
        f"{NAME}: spec.endpointSelector.matchLabels.role: must be a string, is true or false (True)",
    ),
    (
        f"{HEAD}spec: {{endpointSelector: {{matchLabels: {{-role: a}}}}, ingress: []}}",
        f"{NAME}: spec.endpointSelector.matchLabels.-role: -role is not a label key",
    ),
    (
        f"{HEAD}spec: {{endpointSelector: {{matchLabels: {{'x:role': a}}}}, ingress: []}}",
        f"{NAME}: spec.endpointSelector.matchLabels.x:role: unknown label source x (known: any, k8s, reserved)",
    ),
    (
        f"{HEAD}spec: {{endpointSelector: {{matchLabels: {{role: a b}}}}, ingress: []}}",
        f"{NAME}: spec.endpointSelector.matchLabels.role: a b is not a label value (at most 63 letters, digits, «-», «_», «.»)",
    ),
    (
        f"{HEAD}spec: {{endpointSelector: {{matchExpressions: [{{key: a, operator: Is}}]}}, ingress: []}}",
        f"{NAME}: spec.endpointSelector.matchExpressions[0].operator: Is is not an operator (In, NotIn, Exists, DoesNotExist)",
    ),
    (
        f"{HEAD}spec: {{endpointSelector: {{matchExpressions: [{{key: a, operator: In}}]}}, ingress: []}}",
        f"{NAME}: spec.endpointSelector.matchExpressions[0].values: In needs at least one value",
    ),
    (
        f"{HEAD}spec: {{endpointSelector: {{matchExpressions: [{{key: a, operator: Exists, values: [b]}}]}}, ingress: []}}",
        f"{NAME}: spec.endpointSelector.matchExpressions[0].values: Exists takes no values",
    ),
    (
        f"{HEAD}spec: {{endpointSelector: {{matchLabels: {{io.kubernetes.pod.namespace: other}}}}, ingress: []}}",
        f"{NAME}: spec.endpointSelector: selects another namespace; a policy is about endpoints of its own namespace default",
    ),
    # The object
    (f"{HEAD}spec: {{ingress: []}}", f"{NAME}: spec.endpointSelector: is missing"),
    (f"{HEAD}spec: {{nodeSelector: {{}}, ingress: []}}", f"{NAME}: spec.nodeSelector: not supported yet"),
    (f"{HEAD}spec: {{endpointSelector: {{}}}}", f"{NAME}: spec: needs one of ingress, egress, ingressDeny, egressDeny"),
    (HEAD, f"{NAME}: spec: is missing (spec, specs or both)"),
    (f"{HEAD}specs: []", f"{NAME}: spec: is missing (spec, specs or both)"),
    (f"{HEAD}spce: {{}}", f"{NAME}: spce: unknown field"),
    (spec("ingress: [], enableDefaultDeny: {ingres: true}"), f"{NAME}: spec.enableDefaultDeny.ingres: unknown field"),
    (
        f"{HEAD}specs: [{{endpointSelector: {{}}, egress: []}}, {{endpointSelector: {{}}, egress: [{{toCIDR: [x/1]}}]}}]",
        f"{NAME}: specs[1].egress[0].toCIDR[0]: x is not an IP address",
    ),
    (
        "kind: CiliumNetworkPolicy\napiVersion: cilium.io/v1\n",
        "p.yaml: document 1 (line 1): apiVersion: unsupported version cilium.io/v1 of CiliumNetworkPolicy (supported: cilium.io/v2)",
    ),
    (
        "kind: Deployment\napiVersion: apps/v1\n",
        "p.yaml: document 1 (line 1): kind: unsupported kind Deployment (supported: Namespace, Pod, Node, Service, Secret, EndpointSlice, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, NetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy, AuthorizationPolicy, CiliumCIDRGroup, List)",
    ),
    (
        "kind: PeerAuthentication\napiVersion: security.istio.io/v1\n",
        "p.yaml: document 1 (line 1): kind: PeerAuthentication is read by `policy istio translate` alone: it says nothing of the wire",
    ),
    ("kind: Pod\n", "p.yaml: document 1 (line 1): apiVersion: is missing"),
    ("- a\n", "p.yaml: document 1 (line 1): must be a mapping"),
    (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: Up}\n",
        "p.yaml: document 1 (line 1): metadata.name: Up is not a valid name (lower-case letters, digits and «-»)",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIPs: [{ip: 10.0.0.256}]}\n",
        "p.yaml: Pod default/a: status.podIPs[0].ip: 10.0.0.256 is not an IP address",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, lables: {}}\n",
        "p.yaml: Pod default/a: metadata.lables: unknown field",
    ),
    (
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a, labels: {x: 1}}}\n",
        "p.yaml: Pod default/a: items[0].metadata.labels.x: must be a string, is an integer (1)",
    ),
    (
        f"{spec('ingress: []')}---\n{spec('ingress: []')}",
        "p.yaml: CiliumNetworkPolicy default/web: metadata.name: appears twice in this file",
    ),
    # YAML
    ("a: [1\n", "p.yaml: line 2: not YAML: while parsing a flow sequence, did not find expected ',' or ']'"),
    ("a: 1\na: 2\n", "p.yaml: line 2: the key 'a' appears twice"),
    ("a: {b: {c: 1, d: 2, c: 3}}\n", "p.yaml: line 1: the key 'c' appears twice"),
    ("1: 2\n", "p.yaml: line 1: a key must be a string, 1 is none (quote it)"),
    ("? [a]\n: b\n", "p.yaml: line 1: a key must be a string"),
    ("a: &x {b: 1}\nc: {<<: *x}\n", "p.yaml: line 2: merge keys (<<) are not supported"),
    (
        "a: !!python/object/apply:os.system ['id']\n",
        "p.yaml: line 1: tags are not allowed (quote what begins with an exclamation mark)",
    ),
    ("a: !secret b\n", "p.yaml: line 1: tags are not allowed (quote what begins with an exclamation mark)"),
    ("a: *b\n", "p.yaml: line 1: an alias that stands for nothing yet (quote what begins with an asterisk)"),
    ("a: &a [*a]\n", "p.yaml: line 1: an alias that stands for nothing yet (quote what begins with an asterisk)"),
    ("port: 010\n", "p.yaml: line 1: a number with a leading zero is octal or decimal: quote it, or drop the zero"),
    ("a: " + "[" * 60 + "]" * 60, "p.yaml: line 1: nested deeper than 48"),
    ("x" * (4 << 20) + "y", "p.yaml: 4194305 characters are more than the limit of 4194304"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message[:110] for _, message in REFUSED])
def test_refused(text: str, message: str) -> None:
    parsed = parse_text(text, "p.yaml")
    assert [str(error) for error in parsed.errors] == [message]


def test_aliases_are_counted_with_what_they_stand_for() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    parsed = parse_text("\n".join(lines), "bomb.yaml")
    assert [str(error) for error in parsed.errors] == [
        "bomb.yaml: line 6: more than 400000 values (aliases counted with what they stand for)"
    ]


def test_control_characters_and_nul_are_errors_not_crashes() -> None:
    for text in (
        "a: \x00",
        "a: \x1b[2J",
        "\ufeff\ud7ff: \x07",
        "%YAML 9.9\n---\na: b",
        "\t- a",
        "a: b: c",
        "'",
        '"\\x"',
    ):
        parsed = parse_text(text, "p.yaml")
        assert len(parsed.errors) == 1
        assert str(parsed.errors[0]).startswith("p.yaml: ")
        assert str(parsed.errors[0]).isprintable()


def test_a_bad_document_does_not_touch_the_others() -> None:
    parsed = parse_text(f"{spec('ingress: []')}---\n{ports('ports: [{port: bad port}]')}---\nkind: x\n", "p.yaml")
    assert [item.name for item in parsed.objects] == ["web"]
    assert [error.document for error in parsed.errors] == ["CiliumNetworkPolicy default/web", "document 3 (line 10)"]
