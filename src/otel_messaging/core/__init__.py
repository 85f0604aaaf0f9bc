"""The one engine behind every instrumentor: spans, propagation, scopes, metrics and settings of messaging."""
