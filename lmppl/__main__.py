"""`python -m lmppl`."""

from lmppl.cli import main

if __name__ == "__main__":
    main()
