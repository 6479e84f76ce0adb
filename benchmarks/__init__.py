"""Measurements of a real server beside yardsticks in the same run; docs/benchmarks.md."""
