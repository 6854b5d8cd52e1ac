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
    "tests/integration/test_services_spliced.py",
    "tests/integration/test_selftest_broken.py",
    "tests/integration/test_cases_profiles.py",
    "tests/integration/test_proxied_path.py",
    "tests/integration/test_selftest.py",
    "tests/kernel/test_hook_order.py",
    "tests/kernel/test_service_marks.py",
    "tests/kernel/test_socket_lb.py",
)


def costly(name: str) -> bool:
    """Whether a test's id is of a file in COSTLY."""
    return any(fnmatchcase(name.partition("::")[0], pattern) for pattern in COSTLY)


def sample(names: Sequence[str], one_in: int) -> list[str]:
    """Of each function's variants (`name[variant]`) one in so many, and one at least, in the order of `names`.

    It begins at another variant for each function. `one_in` should be odd: parameters mostly have two or four values,
    which an even step would always meet in the same one.
    """
    functions: dict[str, list[str]] = {}
    for name in names:
        functions.setdefault(name.partition("[")[0], []).append(name)
    kept = {
        name
        for number, variants in enumerate(functions.values())
        for name in variants[number % min(one_in, len(variants)) :: one_in]
    }
    return [name for name in names if name in kept]
