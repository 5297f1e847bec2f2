"""The parts of one router worker that the operators' routes and the status page use."""

from msgspec import Struct

from cortex.platform.in_flight import InFlight
from cortex.platform.record import Fleet
from cortex.platform.registry import Registry
from cortex.platform.settings import Settings
from cortex.router.access.keyring import KeyRing
from cortex.router.access.sessions import Sessions
from cortex.router.activation.activator import Activator
from cortex.router.activation.agents import Agents
from cortex.router.decision_log import DecisionLog
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.peers import Peers
from cortex.router.start_history import History


class Runtime(Struct, frozen=True, kw_only=True):
    """They are wired in `app.py`."""

    settings: Settings
    registry: Registry
    view: FleetView
    in_flight: InFlight
    live_catalogue: LiveCatalogue
    keys: KeyRing
    sessions: Sessions
    activator: Activator
    agents: Agents
    history: History
    peers: Peers
    decision_log: DecisionLog

    def fleet(self) -> Fleet:
        """Return the fleet for display."""
        return self.view.display(self.in_flight)
