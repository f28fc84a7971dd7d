"""What every task queue must hold, whichever database is behind it. Nothing is lost, nothing is finished twice.

A backend's test module makes a class of :class:`QueueContract` and provides three fixtures: ``task_queue``,
``database``, the URL of its owner, and ``admin``, an autocommit connection with it: for plain SQL as a user writes it,
and for turning clocks.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "tests.contract_claims",
    "tests.contract_ends",
    "tests.contract_graph",
    "tests.contract_identity",
    "tests.contract_predecessor",
    "tests.contract_warm",
    "tests.contract_wire",
)

from tests.contract_claims import ClaimContract, HeartbeatContract, RescueContract  # noqa: E402
from tests.contract_ends import CancelContract, FinishContract, PeopleContract, RequeueContract  # noqa: E402
from tests.contract_graph import DependencyContract, SpawnContract  # noqa: E402
from tests.contract_identity import IdentityContract  # noqa: E402
from tests.contract_predecessor import PredecessorContract  # noqa: E402
from tests.contract_warm import LOADED as LOADED  # noqa: E402
from tests.contract_warm import WarmContract  # noqa: E402
from tests.contract_wire import WireContract  # noqa: E402


class QueueContract(
    ClaimContract,
    FinishContract,
    CancelContract,
    RequeueContract,
    HeartbeatContract,
    RescueContract,
    IdentityContract,
    DependencyContract,
    SpawnContract,
    PeopleContract,
    WireContract,
    PredecessorContract,
    WarmContract,
):
    """All of it."""
