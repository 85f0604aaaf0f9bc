"""Runs the pipeline under `opentelemetry-instrument` and shows what comes out."""
