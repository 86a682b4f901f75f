"""`python -m visus`."""

from visus.cli import main

if __name__ == "__main__":
    main()
