"""Families of kernels with closed forms: finite, Gaussian, diffusions, Gamma, Poisson, interacting."""
