"""What it costs a large cluster to be told what becomes of its policies (docs/scale.md): sizes, writes, the writer.

.venv/bin/python tests/bench/simulate_status.py [--nodes 5000] [--policies 2000] [--selecting 50]

Reports and counts are those of the agents; times are of this machine. Writes follow from the pacing.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec

from spliceway.agent.policystatus.conditions import status_of
from spliceway.agent.policystatus.ledger import Version, Written
from spliceway.agent.policystatus.pacing import Pacing
from spliceway.agent.policystatus.report import as_object, of_object, report
from spliceway.agent.policystatus.tally import Tally


def rss() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--policies", type=int, default=2000)
    parser.add_argument("--selecting", type=int, default=50, help="policies that are about pods of one node")
    given = parser.parse_args()
    draw, pacing = random.Random(1), Pacing()
    versions = [Version(str(uuid.UUID(int=draw.getrandbits(128))), 3, f"{n:016x}") for n in range(given.policies)]
    policies = [Written(version, "cilium.io/v2", 1) for version in versions]
    before, begin, size = rss(), time.process_time(), 0
    tally = Tally()
    for number in range(given.nodes):
        chosen = draw.sample(versions, given.selecting)
        told = report("enforce", {"CiliumNetworkPolicy": 1}, (one.text for one in chosen), ())
        text = msgspec.json.encode(as_object(told, f"node-{number}", str(uuid.uuid4())))
        size += len(text)
        tally.put(f"node-{number}", of_object(msgspec.json.decode(text))[1])
    read, held = time.process_time() - begin, rss() - before
    begin = time.process_time()
    for one in policies:
        status_of(one, tally.count("CiliumNetworkPolicy", one), None, datetime.now(UTC))
    count = time.process_time() - begin
    print(f"a report: {size // given.nodes} bytes; all: {size / 1e6:.1f} MB")
    print(f"read by the one that writes: {read:.1f} s, {held:.0f} MiB; all policies counted: {count * 1000:.0f} ms")
    every, look = pacing.report_every(given.nodes), pacing.look_every(given.nodes)
    print(f"one edit of a policy: {given.nodes} reports in {every:.0f} s ({given.nodes / every:.0f}/s)")
    print(f"nothing changes: {given.nodes / pacing.refresh:.1f} reports/s that change nothing")
    print(f"the Lease: {given.nodes / look:.0f} looks/s, {1 / pacing.retry:.1f} renewals/s")


if __name__ == "__main__":
    main()
