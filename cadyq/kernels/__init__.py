"""Code in C (extra `kernels`): BitOPs that can be timed, and a faster simulation.

`cadyq.kernels.network` convolves integers bit plane by bit plane, by AND and popcount. It measures what a choice of
bits is worth on a CPU. `cadyq.kernels.fused` quantizes feature maps in one pass. Nothing else in the project needs this
package, see `docs/kernels.md`.
"""
