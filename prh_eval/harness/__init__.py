"""Everything that knows lm-evaluation-harness."""
