"""`python -m everypool.cli`."""

from everypool.cli import main

if __name__ == "__main__":
    main()
