"""What is refused in Cilium's policies beyond ports and CIDRs: header conditions, groups, Services, ICMP, scopes, audit."""
# ruff: noqa: E501

from __future__ import annotations

import pytest

from spliceway.policy.parse import parse_text

NAME = "p.yaml: CiliumNetworkPolicy default/web"
HTTP = "spec.ingress[0].toPorts[0].rules.http[0]"


def document(spec: str, kind: str = "CiliumNetworkPolicy", meta: str = "name: web") -> str:
    return f"{{apiVersion: cilium.io/v2, kind: {kind}, metadata: {{{meta}}}, spec: {{{spec}}}}}"


def spec(body: str) -> str:
    return document(f"endpointSelector: {{}}, {body}")


def http(body: str) -> str:
    return spec(f"ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{{{body}}}]}}}}]}}]")


HEADERS = [
    ("host: 'a['", "host: a[: not an RE2 expression: missing ]: ["),
    ("host: ä.example", "host: ä.example: only ASCII is allowed in an expression (write \\xNN for other bytes)"),
    ("host: [a]", "host: must be a string, is a list (['a'])"),
    ("headers: 'X-A: b'", "headers: must be a list, is a string (X-A: b)"),
    (
        "headers: ['X-A:b']",
        "headers[0]: X-A:b is neither a header name nor «name: value» (with a blank after the colon)",
    ),
    ("headers: ['X-A:']", "headers[0]: X-A: is neither a header name nor «name: value» (with a blank after the colon)"),
    ("headers: [X-A, 'X-B: ']", "headers[1]: '' is not a header value (visible ASCII, blanks inside only)"),
    ("headers: ['X-A:  b']", "headers[0]:  b is not a header value (visible ASCII, blanks inside only)"),
    ("headers: ['']", "headers[0]: '' is not a header name"),
    ("headers: [':path /x']", "headers[0]: :path is not a header name"),
    ("headers: ['HOST: a']", "headers[0]: Host is matched with the field host"),
    (
        "headers: [X-Forwarded-Proto]",
        "headers[0]: X-Forwarded-Proto is set by the proxy where it is absent: no condition can be on it",
    ),
    ("headers: ['a|b']", "headers[0]: a|b is not a header name"),
    (
        "headerMatches: [{name: TE, value: a, mismatch: LOG}]",
        "headerMatches[0].mismatch: LOG can't be done to TE, which is the proxy's own",
    ),
    (
        "headerMatches: [{name: X-Envoy-A, value: a, mismatch: ADD}]",
        "headerMatches[0].mismatch: ADD can't be done to X-Envoy-A, which is the proxy's own",
    ),
    ("headerMatches: [{value: a}]", "headerMatches[0].name: is missing"),
    ("headerMatches: [{name: a b}]", "headerMatches[0].name: a b is not a header name"),
    ("headerMatches: [{name: host}]", "headerMatches[0].name: Host is matched with the field host"),
    (
        "headerMatches: [{name: a, value: é}]",
        "headerMatches[0].value: é is not a header value (visible ASCII, blanks inside only)",
    ),
    (
        "headerMatches: [{name: a, mismatch: DROP}]",
        "headerMatches[0].mismatch: DROP is not an action on mismatch (LOG, ADD, DELETE, REPLACE)",
    ),
    ("headerMatches: [{name: a, regex: b}]", "headerMatches[0].regex: unknown field"),
    *(
        (
            f"headerMatches: [{{name: a, mismatch: {action}}}]",
            f"headerMatches[0].mismatch: {action} needs value or secret",
        )
        for action in ("ADD", "DELETE", "REPLACE")
    ),
    ("headerMatches: [{name: a, secret: {namespace: b}}]", "headerMatches[0].secret.name: is missing"),
    (
        "headerMatches: [{name: a, secret: {name: b, namespace: c.d}}]",
        "headerMatches[0].secret.namespace: c.d is not a valid name (lower-case letters, digits and «-»)",
    ),
    ("headerMatches: [{name: a, secret: {name: b, key: c}}]", "headerMatches[0].secret.key: unknown field"),
]

PEERS = [
    (
        "egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, cidrGroupRef: a}]}]",
        "egress[0].toCIDRSet[0]: needs exactly one of cidr, cidrGroupRef, cidrGroupSelector (has 2)",
    ),
    (
        "egress: [{toCIDRSet: [{except: [10.0.0.0/8]}]}]",
        "egress[0].toCIDRSet[0]: needs exactly one of cidr, cidrGroupRef, cidrGroupSelector (has 0)",
    ),
    (
        "ingress: [{fromCIDRSet: [{cidrGroupRef: A}]}]",
        "ingress[0].fromCIDRSet[0].cidrGroupRef: A is not a valid name (lower-case letters, digits and «-»)",
    ),
    (
        "ingress: [{fromCIDRSet: [{cidrGroupRef: a, except: [x/8]}]}]",
        "ingress[0].fromCIDRSet[0].except[0]: x is not an IP address",
    ),
    (
        "egress: [{toCIDRSet: [{cidrGroupSelector: {matchLabels: {'k8s:a': b}}}]}]",
        "egress[0].toCIDRSet[0].cidrGroupSelector.matchLabels.k8s:a: k8s:a is not a label key",
    ),
    (
        "ingress: [{fromNodes: [{matchLabels: {'reserved:host': ''}}]}]",
        "ingress[0].fromNodes[0].matchLabels.reserved:host: reserved:host is not a label key",
    ),
    (
        "egress: [{toServices: [{}]}]",
        "egress[0].toServices[0]: needs exactly one of k8sService, k8sServiceSelector (has 0)",
    ),
    (
        "egress: [{toServices: [{k8sService: {serviceName: a}, k8sServiceSelector: {selector: {}}}]}]",
        "egress[0].toServices[0]: needs exactly one of k8sService, k8sServiceSelector (has 2)",
    ),
    (
        "egress: [{toServices: [{k8sService: {namespace: a}}]}]",
        "egress[0].toServices[0].k8sService.serviceName: is missing",
    ),
    (
        "egress: [{toServices: [{k8sService: {serviceName: a, namespace: B}}]}]",
        "egress[0].toServices[0].k8sService.namespace: B is not a valid name (lower-case letters, digits and «-»)",
    ),
    (
        "egress: [{toServices: [{k8sServiceSelector: {namespace: a}}]}]",
        "egress[0].toServices[0].k8sServiceSelector.selector: is missing",
    ),
    ("ingress: [{fromServices: []}]", "ingress[0].fromServices: unknown field"),
    ("ingressDeny: [{fromGroups: [{}]}]", "ingressDeny[0].fromGroups: not supported yet"),
    *(
        (
            f"{way}: [{{{first}: [{a}], {second}: [{b}]}}]",
            f"{way}[0]: combining {first} and {second} is not supported, as in Cilium (write two rules)",
        )
        for way, first, a, second, b in (
            ("ingress", "fromCIDR", "10.0.0.0/8", "fromCIDRSet", "{cidr: 10.0.0.0/8}"),
            ("ingress", "fromEntities", "host", "fromNodes", "{}"),
            ("egressDeny", "toEndpoints", "{}", "toServices", "{k8sService: {serviceName: a}}"),
        )
    ),
]

ICMP = [
    ("family: IPv4", "type: is missing"),
    ("type: 256", "type: 256 is not a type of ICMP (0 to 255)"),
    ("type: -1", "type: -1 is not a type of ICMP (0 to 255)"),
    ("type: true", "type: must be a string, is true or false (True)"),
    ("type: PacketTooBig", "type: PacketTooBig is not a type of ICMP over IPv4 (0 to 255, or a name like EchoRequest)"),
    ("type: Echo, family: IPv6", "type: Echo is not a type of ICMP over IPv6 (0 to 255, or a name like EchoRequest)"),
    ("type: '08'", "type: 08 is not a type of ICMP over IPv4 (0 to 255, or a name like EchoRequest)"),
    ("type: 8, family: ipv4", "family: ipv4 is not a family (IPv4, IPv6)"),
    ("type: 8, code: 0", "code: unknown field"),
]

OTHERS = [
    (
        spec("ingress: [{icmps: [{fields: [{type: 8}]}], toPorts: [{ports: [{port: '80'}]}]}]"),
        f"{NAME}: spec.ingress[0]: combining toPorts and icmps is not supported, as in Cilium (write two rules)",
    ),
    (
        spec("ingress: [{icmps: [{}]}]"),
        f"{NAME}: spec.ingress[0].icmps[0].fields: needs at least one type (for every message, leave icmps out)",
    ),
    (
        spec("ingress: [{icmps: [{fields: [" + ", ".join(["{type: 8}"] * 41) + "]}]}]"),
        f"{NAME}: spec.ingress[0].icmps[0].fields: 41 types are more than 40",
    ),
    (
        document("endpointSelector: {}, ingress: []", meta="name: web, annotations: {spliceway.io/enforcement: off}"),
        f"{NAME}: metadata.annotations.spliceway.io/enforcement: must be a string, is true or false (False)",
    ),
    (
        document("endpointSelector: {}, ingress: []", meta="name: web, annotations: {spliceway.io/enforcement: dry}"),
        f"{NAME}: metadata.annotations.spliceway.io/enforcement: dry is not a mode (enforce, audit)",
    ),
    (
        document("endpointSelector: {}, ingress: []", "CiliumClusterwideNetworkPolicy", "name: web, namespace: a"),
        "p.yaml: CiliumClusterwideNetworkPolicy web: metadata.namespace: a CiliumClusterwideNetworkPolicy has no namespace",
    ),
    (
        document("nodeSelector: {}, ingress: []", "CiliumClusterwideNetworkPolicy"),
        "p.yaml: CiliumClusterwideNetworkPolicy web: spec.nodeSelector: not supported yet",
    ),
    (
        document(
            "endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], "
            "rules: {http: [{headerMatches: [{name: a, secret: {name: b}}]}]}}]}]",
            "CiliumClusterwideNetworkPolicy",
        ),
        f"p.yaml: CiliumClusterwideNetworkPolicy web: {HTTP}.headerMatches[0].secret.namespace: is missing",
    ),
]

REFUSED = [
    *((http(body), f"{NAME}: {HTTP}.{reason}") for body, reason in HEADERS),
    *((spec(body), f"{NAME}: spec.{reason}") for body, reason in PEERS),
    *(
        (
            spec(f"ingress: [{{icmps: [{{fields: [{{{body}}}]}}]}}]"),
            f"{NAME}: spec.ingress[0].icmps[0].fields[0].{reason}",
        )
        for body, reason in ICMP
    ),
    *OTHERS,
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message[8:120] for _, message in REFUSED])
def test_refused(text: str, message: str) -> None:
    parsed = parse_text(text, "p.yaml")
    assert [str(error) for error in parsed.errors] == [message]
    assert not parsed.objects
