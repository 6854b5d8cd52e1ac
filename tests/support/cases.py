"""The table of cases: policies + connection or request → verdict, reason, rule.

`tests/cases/*.yaml` run against the interpreter, the compiled table, the kernel programs and Envoy. A file has

- `include`: files or folders of manifests, relative to the top of the repository (optional),
- `manifests`: inline Namespace, Node, Pod and policy documents (optional),
- `sources`: short name → where expected values come from: a specification, or a line of docs/policy.md,
- `spec`: the sources of every case that names none itself (optional),
- `cases`: a list of

      name: what it shows
      spec: a name, or a list of names, of `sources`
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

  or groups: `{group: name, cases: […], …}`, where every other field is the default of the cases in it.

`expect` may be one line, «[verdict] reason [rule]», the verdict left out where the reason says it; `http` likewise,
«[status] reason [rule]». A rule that begins with «spec» is one of the policy named by `policy` (of the case, the group
or the file).
A verdict that passes with a reason that denies is **audit**.

`http.envoy` is Envoy's status where Envoy cannot answer alike; status or reason may then differ (the file says why).
A Host header is added unless one is listed; `no_host: true` keeps it out. Characters of method, path and headers are
Latin-1 bytes.

The node is `node1` with pod ranges 10.240.1.0/24 and fd00:240:1::/64; those of `node2` are 10.240.2.0/24 and
fd00:240:2::/64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec

from spliceway.policy.documents import Document, load_documents
from spliceway.policy.http import STATUS, HttpRequest
from spliceway.policy.model import Cluster, Object
from spliceway.policy.parse import parse_document
from spliceway.policy.verdict import Protocol, Reason

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "cases"
NODE = "node1"
POD_CIDRS = tuple(ip_network(text) for text in ("10.240.1.0/24", "fd00:240:1::/64", "10.240.2.0/24", "fd00:240:2::/64"))
#: The names of the data paths that a case may be limited to.
PATHS = ("interpreter", "kernel", "envoy", "embedded")

IPAddress = IPv4Address | IPv6Address

_CASE = {"name", "from", "to", "family", "protocol", "port", "paths", "expect", "request", "requests", "spec", "policy"}
_REQUEST = {"method", "path", "headers", "version", "no_host", "http", "paths"}


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
    """One line of the table. `source` and `destination` are addresses, the names are as written in the file.

    `spec` says where the expected value comes from.
    """

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
    spec: tuple[str, ...] = ()

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
    if unknown := set(content) - {"include", "manifests", "sources", "spec", "policy", "cases"}:
        raise ValueError(f"{path.name}: unknown {unknown}")
    documents = [found for name in content.get("include", ()) for found in _included(ROOT / name)]
    documents += [
        Document(path.name, index + 1, document.line, manifest)
        for index, manifest in enumerate(content.get("manifests", ()))
    ]
    cluster = cluster_of(documents)
    defaults = {key: content[key] for key in ("spec", "policy") if key in content}
    entries = _flatten(path.name, content["cases"], defaults)
    sources = content.get("sources", {})
    cases = tuple(case for entry in entries for case in _cases(path.name, entry, cluster, sources))
    names = [case.id for case in cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"cases twice: {twice}")
    if unused := set(sources) - {name for entry in entries for name in _names(entry["spec"])}:
        raise ValueError(f"{path.name}: sources that no case names: {unused}")
    return CaseFile(path.name, tuple(found.content for found in documents), cluster, cases)


def cluster_of(documents: list[Document]) -> Cluster:
    """The cluster that documents describe, with the pod ranges of the table."""
    objects: list[Object] = [item for found in documents for item in parse_document(found)]
    return Cluster(pod_cidrs=POD_CIDRS).with_objects(objects)


def _included(path: Path) -> Iterator[Document]:
    for file in sorted(path.rglob("*.yaml")) if path.is_dir() else [path]:
        yield from load_documents(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))


def _flatten(file: str, entries: list[dict[str, Any]], defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """Cases with what their groups say for all of them; names begin with those of the groups."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        if "cases" not in entry:
            found.append({**defaults, **entry, "name": _name(defaults, entry["name"])})
            continue
        if unknown := set(entry) - _CASE - {"group", "cases"} | {"name"} & set(entry):
            raise ValueError(f"{file}: group {entry.get('group')}: unknown {unknown}")
        inner = {**defaults, **entry, "name": _name(defaults, entry["group"])}
        del inner["cases"], inner["group"]
        found += _flatten(file, entry["cases"], inner)
    return found


def _name(defaults: Mapping[str, Any], name: str) -> str:
    return f"{defaults['name']}: {name}" if "name" in defaults else name


def _names(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _cases(file: str, entry: dict[str, Any], cluster: Cluster, sources: Mapping[str, str]) -> Iterator[Case]:
    if unknown := set(entry) - _CASE:
        raise ValueError(f"{file}: {entry.get('name')}: unknown {unknown}")
    if not entry.get("spec") or not set(_names(entry["spec"])) <= set(sources):
        raise ValueError(f"{file}: {entry['name']}: needs a spec, and each a source")
    policy = entry.get("policy", "")
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
            _expect(entry["expect"], policy),
            _request(entry["request"]) if "request" in entry else None,
            tuple(entry.get("paths", PATHS)),
            tuple(sources[name] for name in _names(entry["spec"])),
        )
        if set(base.paths) - set(PATHS):
            raise ValueError(f"{file}: {base.name}: unknown paths {base.paths}")
        if "requests" not in entry:
            yield base
        for item in entry.get("requests", ()):
            headers = "".join(f", {header}" for header in item.get("headers", ()))
            host = ", no Host" if item.get("no_host") else ""
            yield msgspec.structs.replace(
                base,
                name=f"{base.name}: {item['method']} {item['path']!r}{headers}{host} HTTP/{item.get('version', '1.1')}",
                request=_request(item),
                expect=msgspec.structs.replace(base.expect, http=_expect_http(item["http"], policy)),
                paths=tuple(item.get("paths", base.paths)),
            )


def _expect(value: str | dict[str, Any], policy: str) -> Expect:
    if not isinstance(value, str):
        return msgspec.convert(value, Expect)
    verdict, reason, rule = _line(value, policy, ("allow", "deny", "redirect"))
    if not verdict:
        verdict = "redirect" if reason is Reason.REDIRECTED else "deny" if reason.denies else "allow"
    return Expect(verdict, reason.label, rule)


def _expect_http(value: str | dict[str, Any], policy: str) -> ExpectHttp:
    if not isinstance(value, str):
        return msgspec.convert(value, ExpectHttp)
    status, reason, rule = _line(value, policy, ("200",))
    return ExpectHttp(int(status or STATUS[reason]), reason.label, rule)


def _line(text: str, policy: str, first: tuple[str, ...]) -> tuple[str, Reason, str | None]:
    """Parts of «[first] reason [rule]»."""
    words = text.split()
    begin = words.pop(0) if words[0] in first else ""
    reason = Reason[words.pop(0).upper().replace("-", "_")]
    rule = " ".join(words)
    if rule.startswith("spec"):
        rule = f"{policy} {rule}"
    return begin, reason, rule or None


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
    if unknown := set(item) - _REQUEST:
        raise ValueError(f"request {item.get('path')!r}: unknown {unknown}")
    headers = []
    for line in item.get("headers", ()):
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    if not item.get("no_host") and not any(name.lower() == "host" for name, _ in headers):
        headers.insert(0, ("Host", "server"))
    request = HttpRequest.of(item["method"], item["path"], headers)
    return msgspec.structs.replace(request, version=item.get("version", "1.1"))
