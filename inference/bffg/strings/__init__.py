"""Backward filters over strings: surrogates of a language model times automata, and guides from them."""
