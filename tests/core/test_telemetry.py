"""What the telemetry keeps for those who ask again."""

from __future__ import annotations

from otel_messaging.core import vocabulary as v
from otel_messaging.core.settings import Settings
from otel_messaging.core.telemetry import Telemetry


def test_an_operation_is_kept_for_each_action(recorder):
    telemetry = Telemetry("test", Settings(), **recorder.providers)
    orders, facts = v.Destination("orders"), ((v.SYSTEM, "test"),)
    kinds = (v.DELIVER, v.PROCESS, v.BATCH_PROCESS)
    found = [telemetry.prepared(action, "process", orders, facts) for action in kinds]
    assert [operation.name for operation in found] == ["receive orders", "process orders", "batch_process orders"]
    assert [telemetry.prepared(action, "process", orders, facts) for action in kinds] == found
