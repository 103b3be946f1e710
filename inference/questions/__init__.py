"""Many questions: runs that keep each result, their folder, and engines compared at equal cost."""
