"""Particle filters and their parts: the filter, resampling schemes."""
