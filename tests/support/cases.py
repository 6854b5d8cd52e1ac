"""The table of cases: policies + connection or request → verdict, reason, rule.

`tests/cases/*.yaml` run against the interpreter, the kernel programs, Envoy and the embedded proxy. A file has

- `include`: files or folders of manifests, relative to the top of the repository (optional),
- `manifests`: inline Namespace, Node, Pod and policy documents (optional),
- `cases`: a list of

      name: what it shows
      from: default/frontend        # a pod, or an IP address
      to: default/backend
      family: 4                     # between pods; left out: the case is run for IPv4 and for IPv6
      protocol: TCP                 # TCP (the default), UDP, SCTP, ICMP, ICMPV6, or a number
      port: 80                      # destination port; ICMP: type << 8 | code
      paths: [interpreter, kernel]  # left out: every data path
      expect: {verdict: allow|deny|redirect, reason: default-deny, rule: CiliumNetworkPolicy default/a spec.ingress[0]}
      requests:                     # or one `request`; each becomes a case of its own
        - {method: GET, path: /a, headers: ["Name: value"], version: "1.1",
           http: {status: 200, reason: http-allowed, rule: …}}

`http.envoy` is Envoy's status where Envoy cannot answer alike; status or reason may then differ (the file says why).
A Host header is added unless one is listed; `no_host: true` keeps it out. Characters of method, path and headers are
Latin-1 bytes.

The node is `node1` with pod ranges 10.240.1.0/24 and fd00:240:1::/64; those of `node2` are 10.240.2.0/24 and
fd00:240:2::/64.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec

from spliceway.policy.documents import Document, load_documents
from spliceway.policy.http import HttpRequest
from spliceway.policy.model import Cluster, Object
from spliceway.policy.parse import parse_document
from spliceway.policy.verdict import Protocol

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "cases"
NODE = "node1"
POD_CIDRS = tuple(ip_network(text) for text in ("10.240.1.0/24", "fd00:240:1::/64", "10.240.2.0/24", "fd00:240:2::/64"))
#: The names of the data paths that a case may be limited to.
PATHS = ("interpreter", "kernel", "envoy", "embedded")

IPAddress = IPv4Address | IPv6Address


class ExpectHttp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request gets. `rule` names the rule that lets it pass; `envoy` is Envoy's status where it differs."""

    status: int
    reason: str
    rule: str | None = None
    envoy: int | None = None


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a connection gets, by the labels of verdict and reason."""

    verdict: str
    reason: str
    rule: str | None = None
    http: ExpectHttp | None = None


class Case(msgspec.Struct, frozen=True):
    """One line of the table. `source` and `destination` are addresses, the names are as written in the file."""

    file: str
    name: str
    source_name: str
    destination_name: str
    source: IPAddress
    destination: IPAddress
    protocol: int
    port: int
    expect: Expect
    request: HttpRequest | None = None
    paths: tuple[str, ...] = PATHS

    @property
    def id(self) -> str:
        """Unique name for pytest."""
        return f"{self.file}: {self.name} (IPv{self.source.version})"


class CaseFile(msgspec.Struct, frozen=True):
    """A file of cases, the cluster they are about, and its manifests as plain documents (for a testbed)."""

    name: str
    documents: tuple[dict[str, Any], ...]
    cluster: Cluster
    cases: tuple[Case, ...]


def load_case_files() -> list[CaseFile]:
    """Every file of the table. Raises PolicyError or ValueError when one is not as described above."""
    return [load_case_file(path) for path in sorted(CASES.glob("*.yaml"))]


def load_case_file(path: Path) -> CaseFile:
    """One file of the table."""
    (document,) = load_documents(path.read_text(encoding="utf-8"), path.name)
    content = document.content
    if unknown := set(content) - {"include", "manifests", "cases"}:
        raise ValueError(f"{path.name}: unknown {unknown}")
    documents = [found for name in content.get("include", ()) for found in _included(ROOT / name)]
    documents += [
        Document(path.name, index + 1, document.line, manifest)
        for index, manifest in enumerate(content.get("manifests", ()))
    ]
    objects: list[Object] = [item for found in documents for item in parse_document(found)]
    cluster = Cluster(pod_cidrs=POD_CIDRS).with_objects(objects)
    cases = tuple(case for entry in content["cases"] for case in _cases(path.name, entry, cluster))
    names = [case.id for case in cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"cases twice: {twice}")
    return CaseFile(path.name, tuple(found.content for found in documents), cluster, cases)


def _included(path: Path) -> Iterator[Document]:
    for file in sorted(path.rglob("*.yaml")) if path.is_dir() else [path]:
        yield from load_documents(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))


def _cases(file: str, entry: dict[str, Any], cluster: Cluster) -> Iterator[Case]:
    allowed = {"name", "from", "to", "family", "protocol", "port", "paths", "expect", "request", "requests"}
    if unknown := set(entry) - allowed:
        raise ValueError(f"{file}: {entry.get('name')}: unknown {unknown}")
    for source, destination in _addresses(entry, cluster):
        base = Case(
            file,
            entry["name"],
            entry["from"],
            entry["to"],
            source,
            destination,
            _protocol(entry.get("protocol", "TCP")),
            entry.get("port", 0),
            msgspec.convert(entry["expect"], Expect),
            _request(entry["request"]) if "request" in entry else None,
            tuple(entry.get("paths", PATHS)),
        )
        if set(base.paths) - set(PATHS):
            raise ValueError(f"{file}: {base.name}: unknown paths {base.paths}")
        if "requests" not in entry:
            yield base
        for item in entry.get("requests", ()):
            http = msgspec.convert(item["http"], ExpectHttp)
            headers = "".join(f", {header}" for header in item.get("headers", ()))
            host = ", no Host" if item.get("no_host") else ""
            yield msgspec.structs.replace(
                base,
                name=f"{base.name}: {item['method']} {item['path']!r}{headers}{host} HTTP/{item.get('version', '1.1')}",
                request=_request(item),
                expect=msgspec.structs.replace(base.expect, http=http),
                paths=tuple(item.get("paths", base.paths)),
            )


def _addresses(entry: dict[str, Any], cluster: Cluster) -> Iterator[tuple[IPAddress, IPAddress]]:
    ends = [_end(entry[side], cluster) for side in ("from", "to")]
    families = [{address.version for address in addresses} for addresses in ends]
    wanted = {entry["family"]} if "family" in entry else families[0] & families[1]
    if not wanted <= families[0] & families[1] or not wanted:
        raise ValueError(f"{entry['name']}: no addresses of one family")
    for version in sorted(wanted):
        source, destination = (next(a for a in addresses if a.version == version) for addresses in ends)
        yield source, destination


def _end(text: str, cluster: Cluster) -> tuple[IPAddress, ...]:
    return cluster.pods[text].addresses if "/" in text else (ip_address(text),)


def _protocol(value: str | int) -> int:
    return value if isinstance(value, int) else int(Protocol[value])


def _request(item: dict[str, Any]) -> HttpRequest:
    if unknown := set(item) - {"method", "path", "headers", "version", "no_host", "http", "paths"}:
        raise ValueError(f"request {item.get('path')!r}: unknown {unknown}")
    headers = []
    for line in item.get("headers", ()):
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    if not item.get("no_host") and not any(name.lower() == "host" for name, _ in headers):
        headers.insert(0, ("Host", "server"))
    request = HttpRequest.of(item["method"], item["path"], headers)
    return msgspec.structs.replace(request, version=item.get("version", "1.1"))
