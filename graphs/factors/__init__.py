"""Exact and loopy message passing over finite variables, and the tables of a finite program."""
