"""`spliceway`: runs the agent, and asks a running one.

Every command that asks talks to the admin API on the agent's Unix socket, prints a table for people and JSON with
`-o json`, and ends with status 1 and a line on stderr when it can't (2 for wrong usage). Modules are imported by the
command that needs them: `spliceway --help` must not wait for gRPC.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from spliceway.agent.cli.root import app

    app(prog_name="spliceway")
