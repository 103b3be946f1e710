"""Structure over programs: ancestry of particles, graphs of thoughts."""
