"""`scripts/image-root DIR`: the image's root in a directory."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from support.image.build import build


def main() -> int:
    """Make it, and tell how to look around in it."""
    parser = argparse.ArgumentParser(prog="scripts/image-root", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build has it")
    parser.add_argument("--bind", action="append", default=[], type=Path, help="a place here that steps may read, too")
    given = parser.parse_args()
    if os.geteuid():
        parser.error("only root can make roots")
    if given.directory.exists():
        parser.error(f"{given.directory} is there already")
    arguments = dict(each.partition("=")[::2] for each in given.build_arg)
    try:
        stage = build(given.directory.absolute(), arguments, bind=tuple(given.bind))
    except (RuntimeError, ValueError) as error:
        print(f"image-root: {error}", file=sys.stderr)
        return 1
    print(f"{given.directory}: chroot {given.directory} {stage.entrypoint[0]} {' '.join(stage.command)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
