"""Markov chain Monte Carlo over traces: kernels that leave γ / Z invariant."""
