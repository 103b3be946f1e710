"""What a run returns: posteriors, what they answer, decisions from them, and their files."""
