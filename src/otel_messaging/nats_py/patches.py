"""Where nats-py is patched, in one table. Imported when the library is."""

from __future__ import annotations

from otel_messaging.core import vocabulary as v
from otel_messaging.instrumentation.closing import closes
from otel_messaging.instrumentation.patching import Patch
from otel_messaging.instrumentation.settling import settles

from .adapter import Nats
from .nested_calls import wrap_silently
from .publishing import wrap_async_reply, wrap_jetstream_publish, wrap_publish, wrap_publish_async, wrap_request
from .pulling import wrap_fetch, wrap_next_msg, wrap_pull_subscribe
from .services import wrap_respond_error
from .stores import ENTRIES, OBJECTS, WATCHERS, wrap_get_msg
from .subscribing import wrap_aiter, wrap_anext, wrap_cancel, wrap_subscribe, wrap_subscribe_bind


def _nothing() -> v.Attributes:
    return {}


def _delay(delay: float | None = None) -> v.Attributes:
    return {v.SETTLE_DELAY: float(delay)} if delay else {}


_CLIENT = ("nats.aio.client", "Client")
_JETSTREAM = ("nats.js.client", "JetStreamContext")
_PULL = ("nats.js.client", "JetStreamContext.PullSubscription")
_MANAGER = ("nats.js.manager", "JetStreamManager")
_REQUEST = ("nats.micro.request", "Request")
_MSG = ("nats.aio.msg", "Msg")
_ENTRIES = ("nats.js.kv", "KeyValue")
_OBJECTS = ("nats.js.object_store", "ObjectStore")
_ITERATOR = ("nats.aio.subscription", "_SubscriptionMessageIterator")

adapter = Nats
patches = (
    Patch(*_CLIENT, "publish", wrap_publish),
    Patch(*_CLIENT, "request", wrap_request),
    Patch(*_CLIENT, "subscribe", wrap_subscribe),
    Patch(*_CLIENT, "_close", closes),  # where a connection ends, in whatever way
    Patch(*_JETSTREAM, "publish", wrap_jetstream_publish),
    Patch(*_JETSTREAM, "publish_async", wrap_publish_async, since="2.8"),
    Patch(*_JETSTREAM, "_handle_async_reply", wrap_async_reply, since="2.8"),
    Patch(*_JETSTREAM, "subscribe_bind", wrap_subscribe_bind),
    Patch(*_MANAGER, "_api_request", wrap_silently),
    Patch(*_MANAGER, "get_msg", wrap_get_msg),
    Patch(*_JETSTREAM, "pull_subscribe", wrap_pull_subscribe),
    Patch(*_PULL, "fetch", wrap_fetch),
    Patch("nats.aio.subscription", "Subscription", "next_msg", wrap_next_msg),
    Patch(*_ITERATOR, "__anext__", wrap_anext),
    Patch(*_ITERATOR, "__aiter__", wrap_aiter),
    Patch(*_ITERATOR, "_cancel", wrap_cancel),
    Patch(*_MSG, "respond", wrap_silently),
    Patch(*_REQUEST, "respond", wrap_silently, since="2.9"),
    Patch(*_REQUEST, "respond_error", wrap_respond_error, since="2.9"),
    Patch(*_MSG, "ack", settles("ack", _nothing)),
    Patch(*_MSG, "ack_sync", settles("ack", _nothing)),
    Patch(*_MSG, "nak", settles("nak", _delay)),
    Patch(*_MSG, "in_progress", settles("in_progress", _nothing)),
    Patch(*_MSG, "term", settles("term", _nothing)),
    *(Patch(*_ENTRIES, name, wrap) for name, wrap in ENTRIES.items()),
    *(Patch(*_OBJECTS, name, wrap) for name, wrap in OBJECTS.items()),
    *(Patch(_ENTRIES[0], "KeyValue.KeyWatcher", name, wrap) for name, wrap in WATCHERS.items()),
    *(Patch(_OBJECTS[0], "ObjectStore.ObjectWatcher", name, wrap) for name, wrap in WATCHERS.items()),
)
