"""The batch worker's process: `python -m cortex.router.batches`. It imports late, as every process of cortex does."""

from cortex.platform.process import garbage, unused_packages


def main() -> None:
    """Work until no batch is open. The exit code is 0 if none is."""
    garbage.collect_seldom()
    unused_packages.leave_out()
    from cortex.router.batches import worker

    garbage.settle()
    worker.main()


if __name__ == "__main__":
    main()
