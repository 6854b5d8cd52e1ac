"""A sample of parametrised tests, where all of them would take hours: each function in some of its variants."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

#: Files of which CI runs a sample (`SPLICEWAY_SAMPLE`): each has tests in dozens of variants, and takes minutes.
COSTLY = (
    "tests/integration/test_splice_rows_*.py",
    "tests/integration/test_splice_hostile_pods.py",
    "tests/integration/test_proxied_profiles.py",
    "tests/integration/test_devices_proxied.py",
    "tests/integration/test_testbed_profiles.py",
    "tests/integration/test_egress_http.py",
    "tests/integration/test_preflight_profiles.py",
    "tests/integration/test_host_addresses.py",
    "tests/integration/test_node_*.py",
    "tests/integration/test_two_nodes*.py",
    "tests/integration/test_bypass.py",
    "tests/integration/test_service_egress.py",
    "tests/integration/test_services_agent.py",
    "tests/integration/test_services_spliced.py",
    "tests/integration/test_selftest_broken.py",
    "tests/integration/test_cases_profiles.py",
    "tests/integration/test_proxied_path.py",
    "tests/integration/test_proxy_smuggling.py",
    "tests/integration/test_proxy_torture*.py",
    "tests/integration/test_selftest.py",
    "tests/integration/test_attack_*.py",
    "tests/integration/test_crash_*.py",
    "tests/integration/test_egress_attack.py",
    "tests/integration/test_bad_input.py",
    "tests/integration/test_embedded_headers.py",
    "tests/integration/test_xds_churn.py",
    "tests/integration/test_xds_faults.py",
    "tests/integration/test_istio_*.py",
    "tests/kernel/test_hook_order.py",
    "tests/kernel/test_service_marks.py",
    "tests/kernel/test_socket_lb.py",
)

#: Tests that CI leaves out, for its length: most compile programs or whole agents anew, some take a quarter of a minute
#: or more. Much of it `test_node_life` and their neighbours meet in passing; `make test` runs all of them.
LEFT_OUT = (
    "tests/integration/test_agent_kill_switch.py::test_an_agent_that_dies_while_it_is_on",
    "tests/integration/test_agent_kill_switch.py::test_connections_that_began_meanwhile_are_judged_again",
    "tests/integration/test_agent_kill_switch.py::test_on_and_off_by_the_command",
    "tests/integration/test_agent_kill_switch.py::test_there_at_boot",
    "tests/integration/test_agent_kill_switch.py::test_without_an_agent",
    "tests/integration/test_agent_proxy.py::test_other_settings_lose_no_request",
    "tests/integration/test_crash_agent.py::test_ended_and_started_again_under_load",
    "tests/integration/test_crash_agent.py::test_killed_in_the_middle_of_edits",
    "tests/integration/test_daemonset_envoy.py::test_it_rolls_with_a_gap_in_which_nothing_passes",
    "tests/integration/test_daemonset_proxy.py::test_a_long_connection_goes_on_for_as_long_as_is_said",
    "tests/integration/test_daemonset_proxy.py::test_from_the_agent_to_pods_and_back",
    "tests/integration/test_daemonset_proxy.py::test_sockets_that_the_kernel_has_not_seen_are_given_up",
    "tests/integration/test_daemonset_proxy.py::test_without_this_capability_nothing_is_served",
    "tests/integration/test_demo.py::test_kept_node_can_be_entered_and_taken_down",
    "tests/integration/test_hooks.py::test_a_veth_made_anew_gets_its_programs",
    "tests/integration/test_hooks.py::test_what_can_not_be_mended_is_a_problem",
    "tests/integration/test_ports.py::test_a_storm_with_more_connections_than_ports",
    "tests/integration/test_preflight.py::test_a_good_node_with_the_self_test",
    "tests/integration/test_release_rollback.py::test_there_and_back_with_traffic",
    "tests/integration/test_selftest.py::test_some_checks_by_hand",
    "tests/integration/test_selftest.py::test_what_is_broken_is_found",
    "tests/integration/test_service_egress_agent.py::test_a_raw_socket_beside_socket_load_balancing",
    "tests/integration/test_services_agent.py::test_no_room_is_told_and_keeps_what_there_was",
    "tests/integration/test_services_agent.py::test_off_attaches_nothing",
    "tests/integration/test_services_agent.py::test_what_changed_while_no_agent_ran",
    "tests/integration/test_services_spliced.py::test_a_rolling_restart_loses_no_request",
    "tests/integration/test_splice_echo.py::test_without_deciding_once_it_fails",
    "tests/integration/test_splice_upgrade.py::test_back_to_the_older_one_and_forth_again_before_either_has_drained",
    "tests/integration/test_splice_upgrade.py::test_connections_go_on_and_are_judged_while_the_old_version_drains",
    "tests/integration/test_splice_upgrade.py::test_other_programs_of_the_same_version_take_over_in_place",
    "tests/integration/test_splice_upgrade.py::test_what_could_not_be_withdrawn_any_more_is_ended",
    "tests/integration/test_two_nodes_paths.py::test_a_network_that_knows_nodes_only",
    "tests/integration/test_two_nodes_paths.py::test_strict_everywhere_where_ways_are_the_same",
    "tests/kernel/test_abi.py::test_programs_compile_where_no_headers_are_installed",
    "tests/kernel/test_hook_order.py::test_a_link_stays_the_same_and_gets_new_programs",
    "tests/kernel/test_hook_order.py::test_one_agent_after_the_other_without_a_gap",
    "tests/kernel/test_hook_sweep.py::test_an_endpoint_that_can_not_be_attached_keeps_what_it_has",
    "tests/kernel/test_hook_sweep.py::test_an_endpoint_that_has_nothing_of_theirs_does_not_keep_it",
    "tests/kernel/test_progcache.py::test_a_damaged_file_is_compiled_anew_and_replaced",
    "tests/kernel/test_progcache.py::test_another_place_gets_the_same_programs_and_maps",
    "tests/kernel/test_progcache.py::test_maps_that_are_there_are_used",
    "tests/kernel/test_progcache.py::test_programs_that_the_kernel_refuses_are_compiled_anew",
    "tests/kernel/test_socket_lb_control.py::test_a_map_of_another_size_is_told",
    "tests/kernel/test_socket_lb_control.py::test_another_version_takes_over_and_back",
    "tests/unit/test_policystatus_scale.py::test_two_hundred_policies_on_fifty_nodes",
)

#: Files that take minutes: they begin first, so that nobody waits for one of them at the end.
LONG = (
    "tests/kernel/test_hook_order.py",
    "tests/kernel/test_socket_lb*.py",
    "tests/kernel/test_progcache.py",
    "tests/kernel/test_abi.py",
    "tests/kernel/test_deltas.py",
    "tests/integration/test_splice_upgrade.py",
    "tests/integration/test_service*_*.py",
    "tests/integration/test_selftest*.py",
    "tests/integration/test_agent_kill_switch.py",
    "tests/integration/test_cluster_node.py",
    "tests/integration/test_node_life.py",
    "tests/integration/test_cni_chain.py",
    "tests/integration/test_chart_capabilities.py",
    "tests/integration/test_soak.py",
    "tests/integration/test_crash_agent.py",
    "tests/integration/test_hooks.py",
    "tests/integration/test_node_life.py",
    "tests/integration/test_release_rollback.py",
    "tests/integration/test_daemonset_*.py",
    "tests/integration/test_istio_*.py",
)


def costly(name: str) -> bool:
    """Whether a test's id is of a file in COSTLY."""
    return _is_of(name, COSTLY)


def left_out(name: str) -> bool:
    """Whether a test's id is one of LEFT_OUT, in whatever variant."""
    return name.partition("[")[0] in LEFT_OUT


def long(name: str) -> bool:
    """Whether a test's id is of a file in LONG."""
    return _is_of(name, LONG)


def _is_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.partition("::")[0], pattern) for pattern in patterns)


def sample(names: Sequence[str], one_in: int) -> list[str]:
    """Of each function's variants (`name[variant]`) one in so many, and one at least, in the order of `names`.

    It begins at another variant for each file, and at the same one for the functions of a file, which share what their
    variants need: a node takes longer than a test. `one_in` should be odd: parameters mostly have two or four values,
    which an even step would always meet in the same one.
    """
    functions: dict[str, list[str]] = {}
    for name in names:
        functions.setdefault(name.partition("[")[0], []).append(name)
    files: dict[str, int] = {}
    kept: set[str] = set()
    for function, variants in functions.items():
        number = files.setdefault(function.partition("::")[0], len(files))
        kept.update(variants[number % min(one_in, len(variants)) :: one_in])
    return [name for name in names if name in kept]
