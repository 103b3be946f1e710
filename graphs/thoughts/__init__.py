"""The runtime of thought graphs: nodes that start when their parents have ended, and grow more."""
