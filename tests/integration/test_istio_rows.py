"""The rows of `test_splice_rows_*`, on connections between applications and their sidecars."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.istio.bed import SidecarBed, sidecar_bed

MODULES = [f"integration.test_splice_rows_{part}" for part in ("ends", "order", "reading", "memory", "maps")]
pytest.register_assert_rewrite(*MODULES)

from integration.test_splice_rows_ends import *  # noqa: E402, F403
from integration.test_splice_rows_maps import *  # noqa: E402, F403
from integration.test_splice_rows_memory import *  # noqa: E402, F403
from integration.test_splice_rows_order import *  # noqa: E402, F403
from integration.test_splice_rows_reading import *  # noqa: E402, F403

# The node's own conntrack does not know what stays in a pod; for the pod's see test_istio_attack.py.
del test_row_19_a_long_silence_ends_well  # noqa: F821
# Which ports have HTTP rules makes no difference here, and the reason is the node's proxy's.
del test_row_03_splice_2_on_a_port_without_http_rules  # noqa: F821
# A sidecar's socket is known as such only when its SYN leaves: the handshake is measured with the kernel's least time.
del test_row_05_what_is_held_back_is_sent_again_soon  # noqa: F821

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def _sidecar_bed() -> Iterator[SidecarBed]:
    with sidecar_bed() as made:
        yield made


@pytest.fixture
def bed(_sidecar_bed: SidecarBed, request: pytest.FixtureRequest) -> Iterator[SidecarBed]:
    """Two pods with sidecars; RPS at their loopbacks only for what asks for it."""
    _sidecar_bed.set_veths(request.getfixturevalue("veths") if "veths" in request.fixturenames else "plain")
    yield _sidecar_bed
    _sidecar_bed.release()
