"""The shared interface of all schemes: fake-quantization primitives, points, traces, Scheme and registry."""
