"""Quantize a portable graph as a recipe says; weights stay lazy, one is in memory at a time."""
