"""The data of the kernel gate: what is known to be wrong in which kernels, for sockmaps as they are used here.

That use is: insert by sockops at ESTABLISHED into a sockhash, redirect by sk_msg with BPF_F_INGRESS, no sk_skb program,
no corked, applied, pushed or popped bytes, delete by sockops and TC, no bytes by TCP to a member. Faults that need
anything else are not here, but for those that people will look for: these are only told.

Sources: the kernel's CVE records (https://github.com/CVEProject/cvelistV5), announcements of stable releases,
changelogs of Debian's 6.1 and 6.12. A row with `verified=False` has a range that none of them gives whole; it is then
the wider one.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Scope(StrEnum):
    """Which connections a fault switches off."""

    EVERYTHING = "everything"
    SERVERS = "servers"  # sockets that a pod has accepted
    TOLD = "told"  # none: people are told of it


class Row(msgspec.Struct, frozen=True):
    """A fault. Versions are upstream's (`6.12.60`); those of stable series hold within their series only."""

    commit: str  # of the fix in mainline, 12 digits
    subject: str
    bad: tuple[str, ...]  # first bad release; then the first bad ones of older series that got the fault later
    fixed: str  # first fixed release of mainline
    stable: tuple[str, ...]  # first fixed releases of older series
    what: str
    scope: Scope
    source: str
    cve: str = ""
    verified: bool = True


class Feature(msgspec.Struct, frozen=True):
    """What the programs need of the kernel. `required`: nothing works without it."""

    name: str
    since: str
    why: str
    required: bool = True


_COMMIT = "https://git.kernel.org/linus/"
_CVE = "https://www.cve.org/CVERecord?id="

ROWS: tuple[Row, ...] = (
    Row(
        commit="fab60e29fcc6",
        subject="bpf: Allow bpf_get_netns_cookie in BPF_PROG_TYPE_SK_MSG",
        bad=("0.0",),
        fixed="5.15",
        stable=(),
        what="a message can't be told from one of another network namespace: the floor of what the programs need",
        scope=Scope.EVERYTHING,
        source=_COMMIT + "fab60e29fcc6",
    ),
    Row(
        commit="b8b8315e39ff",
        subject="bpf, sockmap: Remove unhash handler for BPF sockmap usage",
        bad=("4.18",),
        fixed="5.16",
        stable=("5.15.3",),
        what="bytes that are queued when the sender closes can be lost",
        scope=Scope.EVERYTHING,
        source=_COMMIT + "b8b8315e39ff",
        # 5.15.3 is told by the date of its stable review only.
        verified=False,
    ),
    Row(
        commit="84472b436e76",
        subject="bpf, sockmap: Fix more uncharged while msg has more_data",
        cve="CVE-2022-49204",
        bad=("4.20",),
        fixed="5.18",
        stable=("5.4.189", "5.10.110", "5.15.33", "5.16.19", "5.17.2"),
        what="a redirect that takes a part of a message breaks the memory accounts of the sender",
        scope=Scope.EVERYTHING,
        source=_CVE + "CVE-2022-49204",
    ),
    Row(
        commit="938d3480b92f",
        subject="bpf, sockmap: Fix memleak in sk_psock_queue_msg",
        cve="CVE-2022-49207",
        bad=("5.14",),
        fixed="5.18",
        stable=("5.15.33", "5.16.19", "5.17.2"),
        what="a message redirected to a socket that is just being closed leaks its memory",
        scope=Scope.EVERYTHING,
        source=_CVE + "CVE-2022-49207",
    ),
    Row(
        commit="9c34e38c4a87",
        subject="bpf, sockmap: Fix memleak in tcp_bpf_sendmsg while sk msg is full",
        cve="CVE-2022-49209",
        bad=("4.20",),
        fixed="5.18",
        stable=("5.4.189", "5.10.110", "5.15.33", "5.16.19", "5.17.2"),
        what="a sender that has to wait for memory leaks some",
        scope=Scope.EVERYTHING,
        source=_CVE + "CVE-2022-49209",
    ),
    Row(
        commit="583585e48d96",
        subject="skmsg: Fix wrong last sg check in sk_msg_recvmsg()",
        bad=("4.20",),
        fixed="6.0",
        stable=("5.15.67", "5.19.8"),
        what="reading redirected bytes can follow a null pointer in the kernel (panic)",
        scope=Scope.EVERYTHING,
        source=_COMMIT + "583585e48d96",
        # The fault (7303524e04af) was carried back to older series, to which patch levels is not known: all of them.
        # The fix of 5.15 is in 5.15.66 or 5.15.67, which came out on one day.
        verified=False,
    ),
    Row(
        commit="4b4647add7d3",
        subject="sock_map: avoid race between sock_map_close and sk_psock_put",
        cve="CVE-2024-39500",
        bad=("5.13",),
        fixed="6.10",
        stable=("5.15.162", "6.1.95", "6.6.35", "6.9.6"),
        what="a socket closed while it is deleted from the map is never closed, with a warning of the kernel",
        scope=Scope.EVERYTHING,
        source=_CVE + "CVE-2024-39500",
    ),
    Row(
        commit="ed1fc5d76b81",
        subject="bpf, sockmap: Fix race between element replace and close()",
        cve="CVE-2024-56664",
        bad=("4.20",),
        fixed="6.13",
        stable=("5.10.236", "5.15.180", "6.1.125", "6.6.67", "6.12.6"),
        what="a socket that takes the place of one that is being closed is used after it was freed",
        # The fix is for arrays; a hash compares elements before it deletes. Nobody has shown that to be enough.
        scope=Scope.EVERYTHING,
        source=_CVE + "CVE-2024-56664",
    ),
    Row(
        commit="d888b7af7c14",
        subject="tcp_bpf: Add sk_rmem_alloc related logic for tcp_bpf ingress redirection",
        bad=("4.18",),
        fixed="6.13",
        # 5.15 and older got its companion only (54f89b3178d5, which charges the socket, but not what can be measured).
        stable=("6.1.123", "6.6.69", "6.12.8"),
        what="redirected bytes are not charged to the reader, so that what it has not read yet has no bound",
        scope=Scope.EVERYTHING,
        source=_COMMIT + "d888b7af7c14",
    ),
    Row(
        commit="fbade4bd08ba",
        subject="mptcp: Disallow MPTCP subflows from sockmap",
        bad=("5.7",),
        fixed="6.18",
        stable=("6.1.159", "6.6.118", "6.12.60", "6.17.10"),
        what="a part of an MPTCP connection gets into the map, which breaks the connection",
        scope=Scope.EVERYTHING,
        source=_COMMIT + "fbade4bd08ba",
        # Seen in the changelogs of 6.1 and 6.12; for 6.6 and 6.17 the releases of its companion c77b3b79a92e are taken.
        # Older series are not known to have it.
        verified=False,
    ),
    Row(
        commit="c77b3b79a92e",
        subject="mptcp: Fix proto fallback detection with BPF",
        cve="CVE-2025-68227",
        bad=("5.7",),
        fixed="6.18",
        stable=("5.10.247", "5.15.197", "6.1.159", "6.6.118", "6.12.60", "6.17.10"),
        what="a plain connection to an MPTCP listener (Go's default since 1.24) can panic the kernel",
        scope=Scope.SERVERS,
        source=_CVE + "CVE-2025-68227",
    ),
    Row(
        commit="929e30f93125",
        subject="bpf, sockmap: Fix FIONREAD for sockmap",
        bad=("4.18",),
        fixed="7.0",
        stable=("6.6.128", "6.12.75", "6.18.14"),
        what="FIONREAD says 0 while spliced bytes wait: programs that trust it (nginx, Java, .NET) stall",
        scope=Scope.EVERYTHING,
        source=_COMMIT + "929e30f93125",
        # 6.12.75 and 6.18.14 are seen in changelogs, 6.6.128 is told by a user of sockmaps. 6.19 has it from a patch
        # level that is not known, so all of 6.19 counts as bad. 6.1 and 5.15 did not get it: tried on 6.1.192.
        verified=False,
    ),
    Row(
        commit="04af4efde58a",
        subject="bpf, sockmap: Account for receive queue in FIONREAD without a verdict program",
        bad=("6.19", "6.6.128", "6.12.75", "6.18.14"),
        fixed="7.2",
        stable=("6.12.114",),
        what="FIONREAD says 0 while bytes wait that came to a member by TCP; here members get none before they left",
        scope=Scope.TOLD,
        source=_COMMIT + "04af4efde58a",
        # 6.12.114 is seen in a changelog; which releases of 6.6, 6.18 and 7.1 have it is not known.
        verified=False,
    ),
    Row(
        commit="460e6486617c",
        subject="tls: reject the combination of TLS and sockmap",
        cve="CVE-2026-93824",
        bad=("4.18",),
        fixed="7.2",
        stable=("6.1.189", "6.12.111", "6.18.53"),
        what="kernel TLS on a spliced socket reaches faults that can be exploited; `guard_ulp` lets no pod set it",
        scope=Scope.TOLD,
        source=_CVE + "CVE-2026-93824",
        # 6.1.189 is seen in a changelog, the others are the record's of September 2026; 6.6 and 7.1 may have it by now.
        verified=False,
    ),
    Row(
        commit="2d66a033864e",
        subject="bpf, sockmap: Fix cork use-after-free in tcp_bpf_sendmsg()",
        cve="CVE-2026-68284",
        bad=("4.20",),
        fixed="7.2",
        stable=("5.10.265", "5.15.216", "6.1.183", "6.6.148", "6.12.101", "6.18.42", "7.1.6"),
        what="two threads that send use memory after it was freed, if a program corks bytes; none does here",
        scope=Scope.TOLD,
        source=_CVE + "CVE-2026-68284",
    ),
    Row(
        commit="a76624733730",
        subject="bpf, sockmap: Fix sk_redir use-after-free in send verdict",
        cve="CVE-2026-74589",
        bad=("4.20",),
        fixed="7.2",
        stable=("5.10.265", "5.15.216", "6.1.183", "6.6.152", "6.12.104", "6.18.45", "7.1.9"),
        what="two threads that send use a socket after it was freed, if a program applies bytes; none does here",
        scope=Scope.TOLD,
        source=_CVE + "CVE-2026-74589",
    ),
    Row(
        commit="e5c6de5fa025",
        subject="bpf, sockmap: Incorrectly handling copied_seq",
        bad=("4.18",),
        fixed="6.4",
        stable=("6.1.32", "6.3.6"),
        what="sk_skb programs stall readers and lose count; none is attached here",
        scope=Scope.TOLD,
        source=_COMMIT + "e5c6de5fa025",
        # 6.1.32 is seen in a changelog, 6.3.6 came out on the same day. Later faults of sk_skb programs have no rows.
        verified=False,
    ),
)

FEATURES: tuple[Feature, ...] = (
    Feature("sockhash", "4.18", "the map that a message is redirected by"),
    Feature("sk_assign in TC", "5.7", "steering to the proxy without netfilter"),
    Feature("socket storage in sk_msg", "5.8", "which connection a message belongs to"),
    Feature("ring buffer", "5.8", "flow events"),
    Feature("sk_lookup", "5.9", "guards the proxy's listeners"),
    Feature("bpf_link for cgroups", "5.7", "one program each, replaced in one step"),
    Feature("netns cookie in sock_ops and sk_msg", "5.15", "whose socket it is: the floor"),
    Feature("tcx", "6.6", "TC programs as links", required=False),
    Feature("netns cookie in TC", "6.13", "one lookup less for each packet", required=False),
)
