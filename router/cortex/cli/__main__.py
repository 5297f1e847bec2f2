"""`python -m cortex.cli`."""

from cortex.cli.main import main

if __name__ == "__main__":
    main()
