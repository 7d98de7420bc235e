"""Checkpoint -> bundle. Knows torch, transformers, optimum and onnx; the runtime never imports it."""
