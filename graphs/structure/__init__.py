"""What depends on what in a program: its graph, read by provenance and by replay, and pictures of it."""
