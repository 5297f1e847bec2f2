"""`cortex`, and `python -m cortex.cli`: Ctrl-C ends it without a traceback from its first import on."""

import signal


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` sets its own handler
    from cortex.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
