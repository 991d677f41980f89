"""BitOPs that can be timed: convolutions of integers bit plane by bit plane, by AND and popcount (extra `kernels`).

Nothing else in the project needs this package. It measures what a choice of bits is worth on a CPU, see
`docs/kernels.md`.
"""
