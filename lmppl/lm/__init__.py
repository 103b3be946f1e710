"""Language models: the protocol, the token loop and the backends."""
