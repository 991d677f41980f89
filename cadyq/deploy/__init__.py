"""Bits that are real: quantized networks as ONNX files that integer arithmetic runs."""
