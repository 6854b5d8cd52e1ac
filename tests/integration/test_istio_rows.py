"""The rows of `test_splice_rows_*`, on connections between applications and their sidecars."""

from __future__ import annotations

import pytest

from support.istio.bed import SidecarBed

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


@pytest.fixture
def bed(sidecars: SidecarBed) -> SidecarBed:
    """Two pods with sidecars."""
    return sidecars
