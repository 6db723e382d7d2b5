"""Run the command line as ``python -m distconv``."""

from distconv.cli import main

if __name__ == "__main__":
    main()
