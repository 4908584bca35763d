"""The ground of the numba kernels.

Read cache (where compiled code is kept), jit (numba itself), raw_memory, hashing, auc_histogram.
"""
