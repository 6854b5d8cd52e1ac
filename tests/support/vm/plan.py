"""What runs on the older kernels, and what doesn't and why. Every test file has a place here: a unit test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

#: Debian 12's kernel, and the one of its backports.
SERIES = ("6.1", "6.12")
SELF_TEST = "self-test"
#: Seconds of the guest's clock for one test file or the self-test (about ten times as long to us).
FILE_LIMIT = 900
#: Seconds, ours, for all of a kernel.
KERNEL_LIMIT = 4 * 3600.0


@dataclass(frozen=True)
class LeftOut:
    """Test files (patterns, relative to tests/) that don't run there, and why."""

    patterns: tuple[str, ...]
    why: str


#: Patterns of what runs, in this order: what says most comes first.
RUN = (
    "kernel/test_abi.py",
    "kernel/test_staging.py",
    "kernel/test_cases.py",
    "kernel/test_socket_lb.py",
    "kernel/test_socket_lb_control.py",
    "kernel/test_socket_lb_policy.py",
    "integration/test_splice_hostile_pods.py",
    "integration/test_splice_rows_memory.py",
    "integration/test_splice_rows_ends.py",
    "integration/test_splice_rows_order.py",
    "integration/test_splice_rows_reading.py",
    "integration/test_splice_rows_maps.py",
    "integration/test_splice_ulp.py",
    "kernel/test_hook_order.py",
    "kernel/test_hook_handover.py",
    "kernel/test_sidecar_hooks.py",
    "kernel/test_hook_sweep.py",
    "kernel/test_devices.py",
    "kernel/test_mixed_bridges.py",
    "integration/test_devices_proxied.py",
    "kernel/test_parse.py",
    "kernel/test_service_marks.py",
    "kernel/test_halves.py",
    "kernel/test_modes.py",
    "kernel/test_socket_lb_mesh.py",
    "integration/test_istio_attack.py",
    "integration/test_istio_ends.py",
    "integration/test_istio_rows.py",
    "integration/test_other_owners.py",
    "integration/test_older_connections.py",
)
#: Of these files: without what hands packets to another processor, since there is one only.
NOT_THERE = "not rps"
#: Of each parametrised test, one in so many variants: all of them would take hours there.
VARIANTS = 5
CHOICE = ("-k", NOT_THERE, "--variants", str(VARIANTS))

LEFT_OUT = (
    LeftOut(
        ("unit/*", "fuzz/*", "kernel/test_pod_cgroup.py", "integration/test_helm_release.py"),
        "no kernel programs in it: the kernel's version makes no difference",
    ),
    LeftOut(
        ("integration/test_xds_*", "integration/test_cli_evaluate.py", "integration/test_agent_xds_cli.py"),
        "gRPC over loopback: no kernel programs in it",
    ),
    LeftOut(
        (
            *("integration/test_envoy_*", "integration/test_istio_translate.py", "integration/test_istio_sidecar.py"),
            "integration/test_istio_conditions.py",
        ),
        "Envoy in software emulation takes minutes to start; what the kernel does for it is what it does for the "
        "sockets of the rows",
    ),
    LeftOut(
        ("integration/test_proxy_*", "integration/test_embedded_*"),
        "the proxy's own behaviour above ordinary sockets; for steering to it on these kernels see above",
    ),
    LeftOut(
        (
            *("kernel/test_deltas.py", "kernel/test_progcache.py", "kernel/test_random_edits.py"),
            *(
                "integration/test_audit_cases.py",
                "integration/test_splice_revocation.py",
                "integration/test_splice_echo.py",
            ),
        ),
        "hours in emulation: hundreds of tables or compilations, or thousands of connections; the files that run have "
        "verdicts and splices of the same programs already",
    ),
    LeftOut(
        ("kernel/test_testbed*",),
        "the virtual node itself: namespaces, veths, processes; the other files build one, too",
    ),
    LeftOut(
        (
            *("integration/test_agent_*", "integration/test_crash_*", "integration/test_bad_input.py"),
            *("integration/test_endpoint_life.py", "integration/test_preflight*.py", "integration/test_cleanup*.py"),
            *("integration/test_selftest*.py", "integration/test_splice_modes.py", "integration/test_upgrade*.py"),
            *("integration/test_hooks.py", "integration/test_services_*.py", "integration/test_revoked_records.py"),
            *("integration/test_host_addresses.py", "integration/test_node_*.py", "integration/test_chart_*.py"),
            *("integration/test_two_nodes*.py", "integration/test_kubernetes_*.py", "integration/test_cni_*"),
            *("integration/test_image_root.py", "integration/test_cluster_*.py", "integration/test_daemonset_*.py"),
            "integration/test_release_*.py",
        ),
        "each test starts agents, and each agent compiles the programs anew, in emulation about two minutes a time; "
        "what an agent asks of the kernel is in the files that run",
    ),
    LeftOut(
        (
            *("integration/test_demo.py", "integration/test_proxied_path.py", "integration/test_egress_*"),
            *("integration/test_proxied_profiles.py", "integration/test_testbed_profiles.py"),
            *("integration/test_bypass.py", "integration/test_cases_profiles.py"),
            *("integration/test_service_egress*.py", "integration/test_service_attacks.py"),
            *("integration/test_istio_agent.py", "integration/test_istio_dump.py", "integration/test_istio_hbone.py"),
            *("integration/test_istio_authorization.py", "integration/test_istio_left.py"),
        ),
        "whole nodes with both proxies: as above, for Envoy and for agents",
    ),
    LeftOut(
        (
            "integration/test_attack_*",
            "integration/test_soak*",
            "integration/test_ports.py",
            "integration/test_big_tcp.py",
            "integration/test_splice_*",
        ),
        "load and races for seconds or minutes: emulation, slow and with one processor at a time, shows neither",
    ),
)

_FIONREAD = "FIONREAD says 0 for spliced bytes (gate: 929e30f93125), so that `auto` splices nothing there"
#: Kernel → what fails there for its own reasons («part: failure», a pattern) → why.
EXPECTED: dict[str, dict[str, str]] = {
    "6.1": {
        "self-test: fionread: *": _FIONREAD,
        "integration/test_splice_rows_reading.py: test_row_02_fionread_*": _FIONREAD,
        "integration/test_splice_rows_reading.py: test_row_02_tcp_waits_*: AssertionError: assert 0 == 500": _FIONREAD,
        "integration/test_istio_rows.py: test_row_02_fionread_*": _FIONREAD,
        "integration/test_istio_rows.py: test_row_02_tcp_waits_*: AssertionError: assert 0 == 500": _FIONREAD,
    }
}


def expected(series: str, failure: str) -> str | None:
    """Why this («part: failure») fails on that kernel whatever we do, or None."""
    return next((why for pattern, why in EXPECTED.get(series, {}).items() if fnmatchcase(failure, pattern)), None)


def chosen(files: Iterable[str]) -> list[str]:
    """The test files that run there, of those given (relative to tests/), in the order of RUN."""
    known = sorted(files)
    return list(dict.fromkeys(file for pattern in RUN for file in known if fnmatchcase(file, pattern)))


def left_out(files: Iterable[str]) -> dict[str, list[str]]:
    """Why → the test files that don't run there for that reason. Raises LookupError for one that has no place here."""
    result: dict[str, list[str]] = {}
    known = sorted(files)
    running = set(chosen(known))
    for file in known:
        if file in running:
            continue
        why = next((each.why for each in LEFT_OUT if any(fnmatchcase(file, one) for one in each.patterns)), None)
        if why is None:
            raise LookupError(f"tests/{file}: neither run on the older kernels nor left out with a reason (plan.py)")
        result.setdefault(why, []).append(file)
    return result
