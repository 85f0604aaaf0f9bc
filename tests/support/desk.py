"""One telemetry of a library that does not exist, for tests that need no broker."""

from __future__ import annotations

import pytest

from otel_messaging.core import vocabulary as v
from otel_messaging.core.settings import Settings, load
from otel_messaging.core.telemetry import Telemetry


class Desk:
    """Publishes and delivers messages that are nothing but their headers."""

    def __init__(self, recorder, settings=None, **arguments):
        self.telemetry = Telemetry("test", settings or Settings(), **{**recorder.providers, **arguments})

    def operation(self, action, verb, name="orders", facts=(), **destination):
        return self.telemetry.operation(action, verb, v.Destination(name, **destination), facts)

    def publish(self, name="orders", headers=None, facts=(), **destination):
        operation = self.operation(v.PUBLISH, "publish", name, **destination)
        return self.telemetry.publish(operation, facts, headers, self.telemetry.active_context())

    def deliver(self, name="orders", headers=None, facts=(), **destination):
        operation = self.operation(v.DELIVER, "process", name, **destination)
        return self.telemetry.deliver(operation, facts, headers, None, self.telemetry.active_context())


@pytest.fixture
def desk(recorder):
    """Makes a desk: `desk(settings, publish_hook=...)`. A vocabulary in place of settings gives its defaults."""

    def make(settings="guide", **arguments):
        if isinstance(settings, str):
            opt_in = {"guide": "", "semconv": "messaging", "both": "messaging/dup"}[settings]
            settings = load({}, {"OTEL_SEMCONV_STABILITY_OPT_IN": opt_in})
        return Desk(recorder, settings, **arguments)

    return make
