"""The composition root of a router worker: wires its parts, its routes and its background tasks.

A router worker is stateless: all of its state can be restored from the record.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from litestar import Litestar, get
from litestar.types import ControllerRouterHandler

from cortex.functions.capabilities import Cost
from cortex.platform import clock
from cortex.platform.audit_trail import AuditTrail
from cortex.platform.cancel import cancel_tasks
from cortex.platform.faults import Faults
from cortex.platform.in_flight import InFlight
from cortex.platform.keys import FleetToken
from cortex.platform.name_lookups import NameLookups
from cortex.platform.process import garbage
from cortex.platform.quota import Quota
from cortex.platform.record import Instance
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.response_record import ResponseRecord
from cortex.platform.serving import systemd
from cortex.platform.settings import Settings
from cortex.platform.usage_record import UsageRecord
from cortex.router.access.audit import AuditLog
from cortex.router.access.auth import AuthGuard
from cortex.router.access.budgets import Budgets
from cortex.router.access.cross_origin import CrossOrigin
from cortex.router.access.keyring import KeyRing, local_key
from cortex.router.access.rate_limits import RateLimiter
from cortex.router.access.sessions import Sessions
from cortex.router.activation.activator import Activator
from cortex.router.activation.agents import Agents
from cortex.router.activation.probe import Probe
from cortex.router.activation.proposer import Proposer
from cortex.router.api_types import Health
from cortex.router.background import Counting, Reporter, Sweeper, probe_silent_hosts
from cortex.router.batches.calls import FolderCalls
from cortex.router.batches.folder import Folder
from cortex.router.batches.sweeper import FileSweeper
from cortex.router.decision_log import DecisionLog
from cortex.router.device_use import DeviceUses
from cortex.router.dispatch import Dispatcher
from cortex.router.fleet_view import FleetView
from cortex.router.health import health_report
from cortex.router.live_catalogue import LiveCatalogue
from cortex.router.metrics.request_metrics import RequestMetrics
from cortex.router.metrics.traffic import Traffic
from cortex.router.metrics.worker_counts import CountsFile
from cortex.router.operations import Operations
from cortex.router.overview.planning import Planner
from cortex.router.overview.sources import Sources
from cortex.router.overview.worker_logs import WorkerLogs
from cortex.router.peers import Peers
from cortex.router.rejections import Rejections
from cortex.router.request import request_log
from cortex.router.request.adapters import AdapterLoads
from cortex.router.request.admission import Admission
from cortex.router.request.context_restores import ContextRestores
from cortex.router.request.deaths import Deaths
from cortex.router.request.exchange import Exchanges
from cortex.router.request.intake import Intake
from cortex.router.request.prompt_cache import CacheSalts
from cortex.router.request.remote_images import RemoteImages
from cortex.router.request.stored_responses import StoredResponses
from cortex.router.request.substitutes import Substitutes
from cortex.router.request.upload import Uploads
from cortex.router.request.upstream import Upstream
from cortex.router.request_record import RequestRecords
from cortex.router.routes import (
    admin,
    audit,
    batches,
    contexts,
    decisions,
    engine,
    files,
    inference,
    instances,
    keys,
    media,
    message_batches,
    models,
    ollama,
    requests,
    responses,
    usage,
    weights,
)
from cortex.router.routes.entrance import Entrance
from cortex.router.routes.reader import Reading
from cortex.router.start_history import History
from cortex.router.status import login
from cortex.router.status import routes as status
from cortex.router.tracing import tracing
from cortex.router.usage import UsageCounts

COLLECT_AFTER = 10_000
"""Objects to allocate between two collections of the youngest ones; Python's default is 700. A request leaves almost no
cycles."""
SWITCH_S = 0.0005
"""How long a thread that parses a large body may keep the event loop waiting each time; Python's default is 5 ms, and
the loop may have to wait several times in one turn."""


def create_app(settings: Settings) -> Dispatcher:
    """Build one router worker. Raises CatalogueError or OSError if the catalogue is invalid."""
    return _RouterWorker(settings).application()


class _RouterWorker:
    """The parts of a router worker, in the order in which they use each other."""

    def __init__(self, settings: Settings) -> None:
        gateway, id = settings.gateway, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.gateway = gateway
        # the record, the catalogue, and who may do what
        self.token = FleetToken(Path(settings.token_file).expanduser())
        self.registry = Registry.of(settings, self.token)
        self.key_ring = KeyRing(self.registry, local_key(settings.local_key_file))
        self.sessions = Sessions(self.registry, self.key_ring, lambda: self.token.current)
        self.guard = AuthGuard(self.key_ring, self.sessions, gateway, lambda: self.token.all)
        self.catalogue = LiveCatalogue(
            Path(settings.models_config), pretend=settings.pretend, admits_forbidden=gateway.admit_forbidden
        )
        self.view, self.in_flight = FleetView(self.registry, id), InFlight(id)
        self.catalogue.on_change = self.view.wake
        # starts
        self.agents, self.probe = Agents(self.token, settings.ca_file), Probe(self._keys_of)
        self.decision_log = DecisionLog(id)
        self.proposer = Proposer(self.view, self.agents, self.in_flight, self.decision_log)
        self.activator = Activator(self.view, self.registry, self.proposer, self.in_flight, self.catalogue, self.probe)
        # what is counted of requests
        self.request_metrics, self.traffic = RequestMetrics(self.view, self.in_flight), Traffic()
        self.rejections, self.tracer = Rejections(self.request_metrics), tracing(settings)
        self.faults = Faults(self.request_metrics.count_fault)
        self.usage_record = UsageRecord(self.registry, id)
        self.device_uses = DeviceUses(
            id,
            lambda: self.view.fleet.hosts.values(),
            lambda: self.request_records.live(),
            self.request_metrics.count_device_use,
        )
        self.usage_counts = UsageCounts(
            self.usage_record,
            self._cost_of,
            self.key_ring.names,
            self.device_uses.take,
            self.request_metrics.count_cost,
        )
        self.request_records = RequestRecords(
            [
                self.request_metrics.count,
                self.device_uses.finished,
                self.tracer.finish,
                lambda finished: self.deaths.open_requests.finished(finished),
            ],
            [
                lambda finished: self.traffic.add(finished, time.time()),
                request_log.note,
                self.usage_counts.add,
                self.decision_log.note_requests,
            ],
            self.faults,
        )
        # requests
        self.deaths = Deaths(self.view, self.probe, self.registry, self.decision_log, id)
        self.upstream, self.images = Upstream(self._keys_of, self.view.unsure), RemoteImages()
        self.intake = Intake(gateway.max_body_mb * 1024 * 1024)
        self.stored = StoredResponses(
            ResponseRecord(self.registry, gateway.responses_ttl_s, gateway.responses_mb * 1024 * 1024), self.intake
        )
        self.admission = Admission(self.view, self.activator, self.in_flight, gateway.batch_quiet_s)
        self.history, self.adapters = History(self.registry), AdapterLoads(self.view, self.agents)
        self.restores = ContextRestores(self.view, self.agents, self.token)
        self.exchanges = Exchanges(
            self.view,
            self.catalogue,
            self.admission,
            self.upstream,
            self.deaths,
            self.request_records,
            self.tracer,
            Substitutes(self.history),
            self.adapters,
            self.restores,
        )
        self.budgets = Budgets(self.usage_record, self.key_ring.holders)
        self.rate_limiter = RateLimiter(Quota(self.registry), self.view, self.budgets)
        # what operators see and do
        self.trail = AuditTrail(self.registry)
        self.audit_log = AuditLog(self.trail)
        self.peers = Peers(self.registry, self.view, self.request_records, self.traffic)
        self.folder, self.folder_calls = Folder.of(gateway), FolderCalls()
        self.sources = Sources(
            self.catalogue,
            self.view,
            self.in_flight,
            self.registry,
            self.agents,
            self.history,
            self.peers,
            strategy=settings.eviction.strategy,
            batches=lambda most: self.folder_calls.call(self.folder.newest, most),
            low_budgets=self.budgets.low,
        )
        self.planner = Planner(self.catalogue, self.sources, self.proposer)
        self.worker_logs = WorkerLogs(self.catalogue, self.view, self.agents)
        self.operations = Operations(
            self.registry, self.view, self.catalogue, self.activator, self.agents, self.history
        )
        self.reporter = Reporter(
            self.registry,
            self.view,
            self.in_flight,
            self.deaths.open_requests,
            self.catalogue,
            self.device_uses.tokens,
            self.restores.unseated,
        )
        self.counting = Counting(
            self.registry, CountsFile(Path(gateway.metrics_dir)), self.request_metrics, self.decision_log
        )

    def _keys_of(self, instance: Instance) -> list[str]:
        return self.token.worker_keys(self.view.key_hosts(instance), instance.id)

    def _cost_of(self, function: str) -> Cost:
        target = self.catalogue.get(function)
        return target.function.cost if target else Cost()

    def application(self) -> Dispatcher:
        """Return the application: the routes of inference before the framework, all others in it."""
        gateway, created = self.gateway, int(time.time())
        ollama_models = ollama.Models(self.catalogue, self.view, self.sources, created)
        uploads = Uploads(gateway.max_upload_mb * 1024 * 1024, self.intake.memory)
        entrance = Entrance(self.exchanges, self.intake, uploads, self.rate_limiter)
        reading = Reading(entrance, self.images, CacheSalts(self.key_ring, self.token))
        table = inference.routes(reading, self.stored) | media.routes(reading)
        table |= ollama.handlers(ollama_models, self.intake)
        rest = Litestar(
            self._routes(ollama_models, created),
            guards=[self.guard.guard],
            lifespan=[self._run],
            exception_handlers=self.rejections.handlers,
            request_max_body_size=gateway.max_body_mb * 1024 * 1024,
            openapi_config=None,
            logging_config=None,
        )
        origins = CrossOrigin(gateway.cors_origins)
        return Dispatcher(table, rest, self.guard, self.rejections, origins, self.audit_log, gateway.root_path)

    def _routes(self, ollama_models: ollama.Models, created: int) -> list[ControllerRouterHandler]:
        catalogue, view, gateway = self.catalogue, self.view, self.gateway
        folder, folder_calls = self.folder, self.folder_calls

        @get("/health", opt={"needs": "nothing"})
        async def health() -> Health:
            """Report whether the router can serve requests, and its problems."""
            return health_report(view, catalogue, self.registry, self.faults, clock.now())

        @get("/", opt={"needs": "nothing"})
        async def root() -> dict[str, str]:
            """Name the service and its entry points."""
            paths = {"models": "/v1/models", "health": "/health", "status": "/status"}
            return {"name": "cortex"} | {name: gateway.root_path + path for name, path in paths.items()}

        return [
            *models.routes(catalogue, view, created),
            *ollama.routes(ollama_models),
            *engine.routes(catalogue, view, self.upstream),
            health,
            root,
            *admin.routes(catalogue, self.sources, self.planner, self.operations, self.decision_log),
            *responses.routes(self.stored),
            *requests.routes(catalogue, self.peers, self.decision_log),
            *login.routes(self.key_ring, self.sessions, gateway.root_path),
            *status.routes(catalogue, self.sources, self.planner, self.worker_logs, self.usage_record),
            *keys.routes(self.registry, self.key_ring),
            *decisions.routes(self.registry, view, catalogue, self.agents),
            *audit.routes(self.trail),
            *usage.routes(self.usage_record, self.key_ring.names),
            *files.routes(folder, folder_calls, gateway),
            *batches.routes(folder, folder_calls, gateway),
            *message_batches.routes(folder, folder_calls, gateway),
            *instances.routes(self.sources, self.worker_logs),
            *weights.routes(catalogue, view, self.agents),
            *contexts.routes(catalogue, view, self.agents),
        ]

    def _loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return what runs in the background, by the name that a fault of it is counted under."""
        sweeper = Sweeper(self.registry, self.view, self.catalogue, self.agents, self.activator, self.faults)
        return {
            "api keys": self.key_ring.follow,
            "limits": self.rate_limiter.renew,
            "budgets": self.budgets.run,
            "record": self.view.follow,
            "catalogue": self.catalogue.follow,
            "report": self.reporter.run,
            "sweep": sweeper.run,
            "silent hosts": lambda: probe_silent_hosts(self.view, self.probe),
            "counts": self.counting.run,
            "audit": self.audit_log.run,
            "usage": self.usage_counts.run,
            "batches": self.admission.batch_gate.watch,
            "starts for batches": self.admission.batch_gate.start,
            "files": FileSweeper(self.folder, self.folder_calls, self.gateway.batch_ttl_s).run,
        }

    @asynccontextmanager
    async def _run(self, _: Litestar) -> AsyncIterator[None]:
        """Read the record, run the loops until the server stops, then write what is left and close the parts."""
        NameLookups().install(asyncio.get_running_loop())
        with contextlib.suppress(RecordUnavailable):
            await self.key_ring.refresh()
            await self.view.refresh()
            await self.reporter.report()
        tasks = [asyncio.create_task(self.faults.run(name, loop)) for name, loop in self._loops().items()]
        garbage.settle(COLLECT_AFTER)
        sys.setswitchinterval(SWITCH_S)
        systemd.notify("READY=1")
        try:
            yield
        finally:
            await cancel_tasks(tasks)
            for part in (self.stored, self.activator, self.adapters, self.peers, self.deaths):
                await part.close()
            with contextlib.suppress(RecordUnavailable):
                await self.reporter.sign_off()
            self.request_records.settle()
            await self.counting.write()
            await self.audit_log.write()
            await self.usage_counts.write()
            await asyncio.to_thread(self.tracer.close)
            for client in (self.agents, self.upstream, self.probe, self.images):
                await client.close()
            self.intake.close()
            self.folder_calls.close()
            await self.registry.close()
