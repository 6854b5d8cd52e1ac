"""The rules that istio-init (or istio-cni) writes into a pod: iptables, nftables alone, or TPROXY for what comes in.

Written out from `istio-iptables` of Istio 1.2x as it runs without options: all ports are taken in both directions but
those that are Istio's own.
"""

from __future__ import annotations

from typing import Literal

from spliceway.agent.testbed.node import Pod

Rules = Literal["iptables", "nftables", "tproxy"]
PROXY_UID = 1337
OUTBOUND, INBOUND = 15001, 15006
#: What is never taken: statistics, health, the agent's own.
KEPT = (15090, 15021, 15020)
TUNNEL, DNS = 15008, 15053
MARK, OUTBOUND_MARK, TABLE = 1337, 1338, 133


def iptables(version: int, uid: int = PROXY_UID, *, dns: bool = False, tproxy: bool = False) -> str:
    """For `iptables-restore` of that version."""
    loopback, own = ("127.0.0.1/32", "127.0.0.6/32") if version == 4 else ("::1/128", "::6/128")
    nat = [
        *(f":{chain} - [0:0]" for chain in ("ISTIO_INBOUND", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_OUTPUT")),
        f"-A ISTIO_INBOUND -p tcp --dport {TUNNEL} -j RETURN",
        f"-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {OUTBOUND}",
        f"-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {INBOUND}",
    ]
    kept = [f"-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN" for port in KEPT]
    if not tproxy:
        nat += ["-A PREROUTING -p tcp -j ISTIO_INBOUND", *kept, "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT"]
    taken = f"-p tcp -m multiport ! --dports 53,{TUNNEL}" if dns else f"-p tcp ! --dport {TUNNEL}"
    others = "-p tcp ! --dport 53" if dns else ""
    nat += ["-A OUTPUT -j ISTIO_OUTPUT", f"-A ISTIO_OUTPUT -o lo -s {own} -j RETURN"]
    for owner in ("uid", "gid"):
        match = f"-m owner --{owner}-owner {uid if owner == 'uid' else PROXY_UID}"
        nat += [
            f"-A ISTIO_OUTPUT -o lo ! -d {loopback} {taken} {match} -j ISTIO_IN_REDIRECT",
            f"-A ISTIO_OUTPUT -o lo {others} {match.replace('owner --', 'owner ! --')} -j RETURN",
            f"-A ISTIO_OUTPUT {match} -j RETURN",
        ]
    if dns:
        nat += [f"-A ISTIO_OUTPUT -p {one} --dport 53 -j REDIRECT --to-ports {DNS}" for one in ("tcp", "udp")]
    nat += [f"-A ISTIO_OUTPUT -d {loopback} -j RETURN", "-A ISTIO_OUTPUT -j ISTIO_REDIRECT"]
    text = "\n".join(["*nat", *nat, "COMMIT", ""])
    return text + (_mangle(loopback, own, uid, kept) if tproxy else "")


def _mangle(loopback: str, own: str, uid: int, kept: list[str]) -> str:
    mark = f"-m mark --mark {MARK}"
    rules = [
        *(f":{chain} - [0:0]" for chain in ("ISTIO_INBOUND", "ISTIO_DIVERT", "ISTIO_TPROXY")),
        f"-A ISTIO_INBOUND -p tcp {mark} -j RETURN",
        f"-A ISTIO_INBOUND -p tcp -s {own} -i lo -j RETURN",
        f"-A ISTIO_INBOUND -p tcp -i lo -m mark ! --mark {OUTBOUND_MARK} -j RETURN",
        f"-A ISTIO_DIVERT -j MARK --set-mark {MARK}",
        "-A ISTIO_DIVERT -j ACCEPT",
        f"-A ISTIO_TPROXY ! -d {loopback} -p tcp -j TPROXY --tproxy-mark {MARK}/0xffffffff --on-port {INBOUND}",
        "-A PREROUTING -p tcp -j ISTIO_INBOUND",
        *kept,
        "-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT",
        "-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY",
        f"-A PREROUTING -p tcp {mark} -j CONNMARK --save-mark",
        f"-A OUTPUT -p tcp -o lo {mark} -j RETURN",
        f"-A OUTPUT ! -d {loopback} -p tcp -o lo -m owner --uid-owner {uid} -j MARK --set-mark {OUTBOUND_MARK}",
        f"-A OUTPUT ! -d {loopback} -p tcp -o lo -m owner --gid-owner {PROXY_UID} -j MARK --set-mark {OUTBOUND_MARK}",
        f"-A OUTPUT -p tcp -m connmark --mark {MARK} -j CONNMARK --restore-mark",
    ]
    return "\n".join(["*mangle", *rules, "COMMIT", ""])


def nftables(uid: int = PROXY_UID) -> str:
    """The nat rules of both versions for `nft -f`, without iptables."""
    kept = ", ".join(map(str, (TUNNEL, *KEPT)))
    owners = "\n".join(
        f"""
    oifname "lo" ip daddr != 127.0.0.1 tcp dport != {TUNNEL} meta {key} {owner} jump istio-in-redirect
    oifname "lo" ip6 daddr != ::1 tcp dport != {TUNNEL} meta {key} {owner} jump istio-in-redirect
    oifname "lo" meta {key} != {owner} return
    meta {key} {owner} return"""
        for key, owner in (("skuid", uid), ("skgid", PROXY_UID))
    )
    return f"""
table inet istio-proxy-nat {{
  chain prerouting {{ type nat hook prerouting priority -100; meta l4proto tcp jump istio-inbound; }}
  chain output {{ type nat hook output priority -100; jump istio-output; }}
  chain istio-inbound {{
    tcp dport {{ {kept} }} return
    meta l4proto tcp jump istio-in-redirect
  }}
  chain istio-redirect {{ meta l4proto tcp redirect to :{OUTBOUND}; }}
  chain istio-in-redirect {{ meta l4proto tcp redirect to :{INBOUND}; }}
  chain istio-output {{
    oifname "lo" ip saddr 127.0.0.6 return
    oifname "lo" ip6 saddr ::6 return
    {owners}
    ip daddr 127.0.0.1 return
    ip6 daddr ::1 return
    jump istio-redirect
  }}
}}
"""


def write(pod: Pod, kind: Rules, uid: int = PROXY_UID, *, dns: bool = False) -> None:
    """Write them into a pod's namespace, and the address from which its sidecar dials the application over IPv6."""
    _run(pod, ["ip", "-6", "addr", "add", "::6/128", "dev", "lo"])
    if kind == "nftables":
        _run(pod, ["nft", "-f", "-"], nftables(uid))
        return
    for version, command in ((4, "iptables-restore"), (6, "ip6tables-restore")):
        _run(pod, [command, "-n"], iptables(version, uid, dns=dns, tproxy=kind == "tproxy"))
        if kind == "tproxy":
            family, every = f"-{version}", "0.0.0.0/0" if version == 4 else "::/0"
            _run(pod, ["ip", family, "rule", "add", "fwmark", str(MARK), "lookup", str(TABLE)])
            _run(pod, ["ip", family, "route", "add", "local", every, "dev", "lo", "table", str(TABLE)])


def _run(pod: Pod, argv: list[str], text: str | None = None) -> None:
    done = pod.run(argv, stdin=text)
    assert done.returncode == 0, f"{pod.key}: {' '.join(argv)}: {done.stderr}"
