"""What a real Envoy says when it refuses: plainly, or with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from spliceway.policy.table import HttpRule, RuleSet
from support.envoy import EnvoyThread
from support.steered import Reply

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

ONE, BOTH, AUDIT = range(1, 4)
ALLOWED = (HttpRule(11, "GET", "/a"),)
SETS = (
    RuleSet(ONE, "one", ALLOWED),
    RuleSet(BOTH, "both", (HttpRule(21),), also=RuleSet(1, "", ALLOWED)),
    RuleSet(AUDIT, "audit", None, audit=ALLOWED),
)

#: rule set, path, Host, reason in the body (None: it passes)
CASES = [
    (ONE, "/a", "api", None),
    (ONE, "/b", "api", ": http-denied"),
    (BOTH, "/b", "api", ": http-denied"),
    (ONE, "/a;b", "api", ": http-ambiguous"),
    (BOTH, "/a;b", "api", ": http-ambiguous"),
    # What is malformed is a 403 only in Envoy.
    (ONE, "/a", "a@b", ""),
    (AUDIT, "/b", "api", None),
    (AUDIT, "/a;b", "api", None),
    (AUDIT, "/a", "a@b", ""),
]


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    with EnvoyThread(tmp_path_factory.mktemp("envoy")) as made:
        yield made


@pytest.mark.parametrize("explain", [False, True])
def test_the_body_of_a_403(envoy: EnvoyThread, explain: bool) -> None:
    envoy.node.settings = msgspec.structs.replace(envoy.node.settings, explain_denied=explain)
    # Ids of their own: a listener that only changes goes on with the old body for a moment.
    shift = 10 * explain
    envoy.run(envoy.node.apply(*(msgspec.structs.replace(each, id=each.id + shift) for each in SETS)))
    for key, path, host, reason in CASES:
        reply: Reply = envoy.node.ask(key + shift, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        if reason is None:
            assert reply.status == 200, (key, path, host)
        else:
            wanted = f"Access denied{reason if explain else ''}".encode()
            assert (reply.status, reply.body) == (403, wanted), (key, path, host)
