"""`python -m spliceway.proxy --config FILE`: what `spliceway proxy` does, without the rest of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from spliceway.policy.errors import SplicewayError
from spliceway.proxy.errors import HANDOVER_REFUSED
from spliceway.proxy.process.settings import LEVELS, configure_log, load_settings


def run(config: Path, log_level: str | None = None) -> None:
    """Be the proxy until SIGTERM, or until another one has taken over.

    Raises:
        SplicewayError: the settings are wrong, or it can't start.
    """
    settings = load_settings(config)
    configure_log(log_level or settings.log_level)
    # gRPC and protobuf, which take their time.
    from spliceway.proxy.process.run import serve

    serve(settings)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m spliceway.proxy", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--log-level", choices=LEVELS)
    options = parser.parse_args()
    try:
        run(options.config, options.log_level)
    except SplicewayError as error:
        from spliceway.proxy.process.handover import HandoverError

        print(f"error: {error}", file=sys.stderr)
        sys.exit(HANDOVER_REFUSED if isinstance(error, HandoverError) else 1)


if __name__ == "__main__":
    main()
