"""The kinds of proxy that a node can have, as parameters of tests that are about the node and not about its proxy."""

from __future__ import annotations

import pytest

BOTH = ("embedded", pytest.param("envoy", marks=pytest.mark.envoy))
EMBEDDED = "embedded"
ENVOY = "envoy"
