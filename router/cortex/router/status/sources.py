"""Where the page's knowledge comes from: the runtime's view, and what is read beside it now and then."""

import time

from cortex.router.history import by_revision
from cortex.router.runtime import Runtime
from cortex.router.status.known import Known


class Sources:
    """Reads everything a page is made of."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def known(self) -> Known:
        """Return what is known now. Never fails: what cannot be read is as it was, or not there."""
        runtime = self._runtime
        catalogue = runtime.directory.catalogue
        ledger = await runtime.history.ledger()
        return Known(
            catalogue=catalogue,
            revisions={f: runtime.directory.find(f).revision for f in catalogue.functions},
            fleet=runtime.fleet(),
            starts=by_revision(ledger),
            strategy=runtime.settings.eviction.strategy,
            away=runtime.view.away,
            problem=runtime.directory.problem,
            now=time.time(),
        )
