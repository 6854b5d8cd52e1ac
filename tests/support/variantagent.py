"""`spliceway` whose kernel programs have another digest: `python -m support.variantagent VARIANT ARGUMENTS`.

They are compiled anew and take the place of those that run, as those of another version would.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from spliceway.agent.cli import main
from spliceway.bpf import datapath, install
from spliceway.bpf.types import DatapathSettings

_defines = install.defines


def _with_variant(settings: DatapathSettings, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return _defines(settings, {**(extra or {}), "TEST_VARIANT": _variant})


if __name__ == "__main__":
    _variant = sys.argv.pop(1)
    vars(datapath)["defines"] = _with_variant
    main()
