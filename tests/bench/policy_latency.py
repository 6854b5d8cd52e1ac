"""From the rename() of an edited policy file to the first packet judged anew: under 200 ms in the median.

    .venv/bin/python tests/bench/policy_latency.py [--edits 15] [--proxy embedded] [-o json]

It runs `spliceway bench policy-latency` and ends with status 1 when a median is above the target. Not a test of
pytest's: figures of a busy machine say nothing.
"""

from __future__ import annotations

import argparse
import sys

from spliceway.agent.bench import latency, report
from spliceway.agent.bench.edits import SUBJECTS
from spliceway.agent.bench.interrupts import INTERRUPTED, interruptible
from spliceway.agent.bench.progress import progress
from spliceway.agent.cli.render import emit_json
from spliceway.agent.errors import OWN_ERRORS

#: Milliseconds.
TARGET = 200.0


def main() -> int:
    """Measure, print, compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=15, help="edits of each kind (default: 15)")
    parser.add_argument("--proxy", choices=("embedded", "envoy"), default="embedded", help="the node's proxy")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    try:
        with interruptible():
            result = latency.run(list(SUBJECTS.values()), edits=options.edits, proxy=options.proxy, say=progress())
    except KeyboardInterrupt:
        return INTERRUPTED
    except OWN_ERRORS as error:
        print(f"policy_latency: {error}", file=sys.stderr)
        return 1
    if options.output == "json":
        emit_json(report.latency_json(result))
    else:
        report.print_latencies(result)
    slow = [each for each in result.latencies if each.milliseconds.median >= TARGET]
    for each in slow:
        what = f"{each.rule} rule, {each.data_path} {each.protocol}, {each.edit}"
        print(f"{what}: {each.milliseconds.median:.0f} ms, target {TARGET:.0f} ms", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
