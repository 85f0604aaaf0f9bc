"""A client of a broker that nobody has: what `docs/adding-a-library.md` adds. The broker is a dictionary of queues."""

from __future__ import annotations

import collections

_TOPICS = collections.defaultdict(collections.deque)


class Message:
    __slots__ = ("body", "headers", "topic")

    def __init__(self, topic, body, headers):
        self.topic = topic
        self.body = body
        self.headers = headers


class Producer:
    def __init__(self):
        self.open = True

    def close(self):
        self.open = False

    def send(self, topic, body, headers=None):
        """Send a message. Headers are a dictionary of texts."""
        if not self.open:
            raise ConnectionError("closed")
        if not isinstance(body, bytes):
            raise TypeError("a body is bytes")
        _TOPICS[topic].append(Message(topic, body, dict(headers or {})))


class Consumer:
    def __init__(self, topic):
        self.topic = topic
        self.open = True

    def __iter__(self):
        return self

    def __next__(self):
        """The next message. The loop ends where there is none."""
        if not self.open or not _TOPICS[self.topic]:
            raise StopIteration
        return _TOPICS[self.topic].popleft()

    def close(self):
        self.open = False
