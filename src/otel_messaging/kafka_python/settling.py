"""What producer and consumer tell the broker of offsets and transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core.safety import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.instrumentation.settling import Ends


def begin_settling(state: Callable[[Any], Any], client: Any, verb: str, *args: Any) -> Ends | None:
    """Begin to tell the broker something. It never raises.

    Args:
        state: gives what is kept for the client.
        client: the producer or consumer.
        verb: the library's own word for it.
        *args: what else the state's ``settlement`` takes.
    """
    try:
        return state(client).settlement(verb, *args)  # type: ignore[no-any-return]
    except Exception as error:
        report(verb, error)
        return None


def settle(
    settlement: Ends | None, call: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Make the call that tells it, and tell of its outcome."""
    try:
        result = call(client, *args, **kwargs)
    except BaseException as error:
        if settlement is not None:
            settlement.end(error)
        raise
    if settlement is not None:
        settlement.end()
    return result
