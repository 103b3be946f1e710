"""Bayesian networks of finite variables, in Pyro and NumPyro too; BIRD: tables asked of a language model."""
