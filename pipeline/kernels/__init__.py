"""What numba kernels stand on. Read cache (where compiled code is kept), jit (numba itself), raw_memory, hashing, auc_histogram."""
