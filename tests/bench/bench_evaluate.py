"""`spliceway policy evaluate`: seconds of CPU for many queries over a thousand pods and two hundred policies.

.venv/bin/python tests/bench/bench_evaluate.py [--queries 1000000]. Beside it, a tenth of the queries: less than ten
times as much is due to the start.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.questions import write_world


def seconds(queries: int) -> float:
    """CPU time of one run, start included."""
    with tempfile.TemporaryDirectory() as directory:
        write_world(Path(directory), queries=queries)
        argv = [sys.executable, "-m", "spliceway.agent", "policy", "evaluate", "-o", "json"]
        argv += ["--policies", "all.json", "--inventory", "all.json", "--queries", "queries.jsonl"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, cwd=directory, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1_000_000)
    queries = parser.parse_args().queries
    few, many = seconds(queries // 10), seconds(queries)
    print(
        f"{queries // 10} queries: {few:.1f} s; {queries} queries: {many:.1f} s of CPU, {many / few:.1f} times as much"
    )


if __name__ == "__main__":
    main()
