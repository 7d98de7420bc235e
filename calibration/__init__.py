"""Samples -> recipe: what a checkpoint's activations are like, and how to quantize it; and what that has cost."""
