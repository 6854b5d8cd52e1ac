"""wrk: its command line, and its result in exact numbers.

wrk prints latencies with changing units («1.21ms»), so a Lua script has it print the numbers behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from spliceway.agent.bench.errors import BenchError

#: wrk's own word for a request that took longer, in seconds; such requests count as errors.
TIMEOUT = 5
_MARK = "spliceway-result "

#: wrk calls `done` at its end. Durations are in microseconds (wrk's SCRIPTING document).
SCRIPT = f"""
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{_MARK}{{"duration_us":%d,"requests":%d,"bytes":%d,"p50_us":%.1f,"p99_us":%.1f,"max_us":%.1f,' ..
    '"errors":{{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}}}\\n',
    summary.duration, summary.requests, summary.bytes,
    latency:percentile(50), latency:percentile(99), latency.max,
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
"""

#: The same, with another head in each request.
UNIQUE_SCRIPT = f"""
local number = 0
request = function()
  number = number + 1
  return wrk.format(nil, nil, {{["X-Number"] = tostring(number)}})
end
{SCRIPT}"""


class WrkResult(msgspec.Struct, frozen=True):
    """One run. Times in microseconds; `bytes` are those of the replies, heads included; `errors` by kind.

    `errors["status"]`: replies with a status above 399.
    """

    duration_us: int
    requests: int
    bytes: int
    p50_us: float
    p99_us: float
    max_us: float
    errors: dict[str, int]

    @property
    def requests_per_second(self) -> float:
        """Replies a second."""
        return self.requests / (self.duration_us / 1e6)

    @property
    def bytes_per_second(self) -> float:
        """Bytes of replies a second."""
        return self.bytes / (self.duration_us / 1e6)


def command(script: str, url: str, connections: int, seconds: float) -> Sequence[str]:
    """Command line of one run with one thread. wrk takes whole seconds: fractions are rounded, at least one."""
    duration = f"{max(1, round(seconds))}s"
    return [
        "wrk", "--threads", "1", "--connections", str(connections), "--duration", duration,
        "--timeout", f"{TIMEOUT}s", "--latency", "--script", script, url,
    ]  # fmt: skip


def parse(output: str) -> WrkResult:
    """Result of a run from what wrk printed. Raises BenchError when it has none, or has errors or no replies.

    A figure made of refused or broken requests looks better than a real one, so any error makes it void.
    """
    lines = [line for line in output.splitlines() if line.startswith(_MARK)]
    if len(lines) != 1:
        raise BenchError(f"wrk did not report: {output.strip()[-500:] or 'it printed nothing'}")
    try:
        result = msgspec.json.decode(lines[0].removeprefix(_MARK), type=WrkResult)
    except msgspec.MsgspecError as error:
        raise BenchError(f"wrk reported {lines[0]!r}: {error}") from error
    if failed := {kind: count for kind, count in result.errors.items() if count}:
        counted = ", ".join(f"{count} {kind}" for kind, count in failed.items())
        raise BenchError(f"of {result.requests} requests some failed: {counted} errors")
    if not result.requests or not result.duration_us:
        raise BenchError("not one request was answered")
    return result
