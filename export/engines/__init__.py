"""TensorRT plans from a bundle's ONNX graphs. Needs TensorRT or TensorRT-RTX and onnx, never torch."""
