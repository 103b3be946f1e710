"""The machine under every engine: particles that run a program, and the scheduler that batches them."""
