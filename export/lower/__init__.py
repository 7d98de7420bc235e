"""Lowerings, one a target: portable ONNX in, what the target runs best out."""
