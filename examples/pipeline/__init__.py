"""Four programs that know nothing of OpenTelemetry."""
