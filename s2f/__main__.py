"""`python -m s2f` is the same as `s2f`."""

from s2f.cli import main

if __name__ == "__main__":
    main()
