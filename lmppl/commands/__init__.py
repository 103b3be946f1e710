"""The command line, a file a command: the roof, which may import anything and which nothing imports."""
