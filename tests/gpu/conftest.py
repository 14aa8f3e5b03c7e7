"""Kernels for GPUs without a GPU. Triton decides when it is imported whether it interprets; these tests run in a
process of their own (test_interpreted.py), or compile only."""
