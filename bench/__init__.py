"""Profiling, references, rivals and benchmark tasks. May import everything."""
