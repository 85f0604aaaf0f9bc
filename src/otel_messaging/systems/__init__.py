"""What a broker tells, whichever client speaks to it."""
