"""Handling that is tried again: a hook for tenacity and stamina, which do the trying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core import safety
from otel_messaging.core import vocabulary as v
from otel_messaging.core.delivery import handled_here
from otel_messaging.core.operations import error_type_of

if TYPE_CHECKING:
    from stamina.instrumentation import RetryDetails
    from tenacity import RetryCallState

    from otel_messaging.core.delivery import Delivery


def record_retry(details: RetryCallState | RetryDetails) -> None:
    """Tell the span of the message that is being handled here that something is about to be tried again.

    An event ``retry_attempt`` has the number of the attempt and the type of the error that led to it, the attribute
    ``retry.count`` counts all retries while the message is handled, and the metric ``messaging.messages.retried`` does
    the same for all messages. Where no message is being handled, nothing happens.

    With `tenacity <https://tenacity.readthedocs.io>`_, for functions and coroutines alike::

        @retry(stop=stop_after_attempt(3), before=record_retry, before_sleep=record_retry)

    As ``before`` it is called for the first attempt too, so that a message that needed no retry has a
    ``retry.count`` of 0. With `stamina <https://stamina.hynek.me/en/stable/instrumentation.html>`_ once per program,
    beside the hooks that are there::

        set_on_retry_hooks([*get_on_retry_hooks(), record_retry])

    stamina calls hooks only after a failure: there a message that needed no retry has no ``retry.count``.

    Args:
        details: what either library tells its hooks.
    """
    try:
        delivery = handled_here()
        telemetry = delivery.telemetry if delivery is not None else None
        if delivery is not None and telemetry is not None and telemetry.active_context() is not None:
            number, error, again = _read(details)
            _tell(delivery, number, error, again)
            if again:
                telemetry.count(v.RETRIED, delivery.operation.destination, delivery.operation.facts, error)
    except Exception as failure:
        safety.report("record_retry", failure)


def _read(retry: Any) -> tuple[int, BaseException | None, bool]:
    """The number of a retry, what has led to it, and whether there is one: not yet before the first attempt."""
    if hasattr(retry, "retry_num"):
        return retry.retry_num, retry.caused_by, True
    outcome = retry.outcome
    if outcome is None:  # tenacity's `before`: an attempt begins, and those that failed were told of
        return retry.attempt_number - 1, None, False
    return retry.attempt_number, outcome.exception(), True


def _tell(delivery: Delivery, number: int, error: BaseException | None, again: bool) -> None:
    span = delivery.span
    told = (getattr(span, "attributes", None) or {}).get(v.RETRY_COUNT, 0)
    span.set_attribute(v.RETRY_COUNT, told + 1 if again else max(told, number))
    if again:
        attributes: v.Attributes = {v.RETRY_NUMBER: number}
        if error is not None:
            attributes[v.ERROR_TYPE] = error_type_of(error)
        span.add_event(v.RETRY, attributes)
