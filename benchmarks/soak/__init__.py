"""Many messages through one process: nothing may stay behind, and nothing may be told twice or not at all."""
