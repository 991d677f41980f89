"""Export of quantized networks to ONNX for INT8 runtimes."""
