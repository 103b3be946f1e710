"""Search over traces: a tree node is a particle that stands before a choice."""
