"""The composition root of a router worker: wires its parts, its routes and its background tasks.

A router worker is stateless: all of its state can be restored from the record.
"""

import asyncio
import contextlib
import gc
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from litestar import Litestar, get

from cortex.functions.capabilities import Cost
from cortex.platform import clock
from cortex.platform.audit_trail import AuditTrail
from cortex.platform.cancel import cancelled
from cortex.platform.faults import Faults
from cortex.platform.in_flight import InFlight
from cortex.platform.keys import FleetToken
from cortex.platform.name_lookups import NameLookups
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
from cortex.router.request.deaths import Deaths
from cortex.router.request.exchange import Exchanges
from cortex.router.request.intake import Intake
from cortex.router.request.probe import Probe
from cortex.router.request.prompt_cache import CacheSalts
from cortex.router.request.remote_images import RemoteImages
from cortex.router.request.request_record import RequestRecords, each
from cortex.router.request.stored_responses import StoredResponses
from cortex.router.request.substitutes import Substitutes
from cortex.router.request.upload import Uploads
from cortex.router.request.upstream import Upstream
from cortex.router.routes import (
    admin,
    audit,
    batches,
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
"""Objects to allocate between two collections of the youngest ones; Python's default is 700."""


def create_app(settings: Settings) -> Dispatcher:
    """Build one router worker. Raises CatalogueError or OSError if the catalogue is invalid."""
    gateway, id = settings.gateway, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    # the record, the catalogue, and who may do what
    token = FleetToken(Path(settings.token_file).expanduser())
    registry = Registry.of(settings, token)
    key_ring = KeyRing(registry, local_key(settings.local_key_file))
    sessions = Sessions(registry, key_ring, lambda: token.current)
    catalogue = LiveCatalogue(
        Path(settings.models_config), pretend=settings.pretend, admits_forbidden=gateway.admit_forbidden
    )
    view, in_flight = FleetView(registry, id), InFlight(id)
    catalogue.on_change = view.wake

    def keys_of(instance: Instance) -> list[str]:
        return token.worker_keys(view.key_hosts(instance), instance.id)

    # starts
    agents, probe, decision_log = Agents(token, settings.ca_file), Probe(keys_of), DecisionLog(id)
    proposer = Proposer(view, agents, in_flight, decision_log)
    activator = Activator(view, registry, proposer, in_flight, catalogue, probe)
    # requests, and what is counted of them
    request_metrics, traffic, tracer = RequestMetrics(view, in_flight), Traffic(), tracing(settings)
    faults = Faults(request_metrics.count_fault)
    usage_record = UsageRecord(registry, id)

    def cost_of(function: str) -> Cost:
        target = catalogue.get(function)
        return target.function.cost if target else Cost()

    device_uses = DeviceUses(
        id, lambda: view.fleet.hosts.values(), lambda: request_records.live(), request_metrics.count_device_use
    )
    usage_counts = UsageCounts(usage_record, cost_of, key_ring.names, device_uses.take)
    request_records = RequestRecords(
        [
            each(request_metrics.count),
            each(lambda request_record: traffic.add(request_record, time.time())),
            request_log.note,
            usage_counts.add,
            device_uses.finished,
            each(decision_log.note_request),
            each(tracer.finish),
        ],
        faults,
    )
    deaths = Deaths(view, probe, registry, decision_log, id)
    upstream, images, intake = (
        Upstream(keys_of, view.unsure),
        RemoteImages(),
        Intake(gateway.max_body_mb * 1024 * 1024),
    )
    stored = StoredResponses(
        ResponseRecord(registry, gateway.responses_ttl_s, gateway.responses_mb * 1024 * 1024), intake
    )
    admission = Admission(view, activator, in_flight, gateway.batch_quiet_s)
    history = History(registry)
    substitutes = Substitutes(history)
    adapters = AdapterLoads(view, agents)
    exchanges = Exchanges(view, catalogue, admission, upstream, deaths, request_records, tracer, substitutes, adapters)
    budgets = Budgets(usage_record, key_ring.holders)
    rate_limiter = RateLimiter(Quota(registry), view, budgets)
    guard = AuthGuard(key_ring, sessions, gateway, lambda: token.all)
    rejections = Rejections(request_metrics)
    # beside requests
    trail = AuditTrail(registry)
    audit_log = AuditLog(trail)
    peers = Peers(registry, view, request_records, traffic)
    folder, folder_calls = Folder.of(gateway), FolderCalls()
    sources = Sources(
        catalogue,
        view,
        in_flight,
        registry,
        agents,
        history,
        peers,
        strategy=settings.eviction.strategy,
        batches=lambda most: folder_calls.call(folder.newest, most),
        low_budgets=budgets.low,
    )
    planner, worker_logs = Planner(catalogue, sources, proposer), WorkerLogs(catalogue, view, agents)
    operations = Operations(registry, view, catalogue, activator, agents, history)
    reporter = Reporter(registry, view, in_flight, deaths.open_requests, catalogue, device_uses.tokens)
    counting = Counting(registry, CountsFile(Path(gateway.metrics_dir)), request_metrics, decision_log)
    loops: dict[str, Callable[[], Awaitable[None]]] = {
        "api keys": key_ring.follow,
        "limits": rate_limiter.renew,
        "budgets": budgets.run,
        "record": view.follow,
        "catalogue": catalogue.follow,
        "report": reporter.run,
        "sweep": Sweeper(registry, view, catalogue, agents, activator, faults).run,
        "silent hosts": lambda: probe_silent_hosts(view, probe),
        "counts": counting.run,
        "audit": audit_log.run,
        "usage": usage_counts.run,
        "batches": admission.batch_gate.watch,
        "starts for batches": admission.batch_gate.start,
        "files": FileSweeper(folder, folder_calls, gateway.batch_ttl_s).run,
    }

    @asynccontextmanager
    async def run(_: Litestar) -> AsyncIterator[None]:
        NameLookups().install(asyncio.get_running_loop())
        with contextlib.suppress(RecordUnavailable):
            await key_ring.refresh()
            await view.refresh()
            await reporter.report()
        tasks = [asyncio.create_task(faults.run(name, loop)) for name, loop in loops.items()]
        _settle_memory()
        systemd.notify("READY=1")
        try:
            yield
        finally:
            await cancelled(tasks)
            for part in (stored, activator, adapters, peers, deaths):
                await part.close()
            with contextlib.suppress(RecordUnavailable):
                await reporter.sign_off()
            request_records.settle()
            await counting.write()
            await audit_log.write()
            await usage_counts.write()
            await asyncio.to_thread(tracer.close)
            for client in (agents, upstream, probe, images):
                await client.close()
            intake.close()
            folder_calls.close()
            await registry.close()

    @get("/health", opt={"needs": "nothing"})
    async def health() -> Health:
        """Report whether the router can serve requests, and its problems."""
        return health_report(view, catalogue, registry, faults, clock.now())

    @get("/", opt={"needs": "nothing"})
    async def root() -> dict[str, str]:
        """Name the service and its entry points."""
        paths = {"models": "/v1/models", "health": "/health", "status": "/status"}
        return {"name": "cortex"} | {name: gateway.root_path + path for name, path in paths.items()}

    created = int(time.time())
    ollama_models = ollama.Models(catalogue, view, sources, created)
    rest = Litestar(
        [
            *models.routes(catalogue, view, created),
            *ollama.routes(ollama_models),
            *engine.routes(catalogue, view, upstream),
            health,
            root,
            *admin.routes(catalogue, sources, planner, operations, decision_log),
            *responses.routes(stored),
            *requests.routes(catalogue, peers, decision_log),
            *login.routes(key_ring, sessions, gateway.root_path),
            *status.routes(catalogue, sources, planner, worker_logs, usage_record),
            *keys.routes(registry, key_ring),
            *decisions.routes(registry, view, catalogue, agents),
            *audit.routes(trail),
            *usage.routes(usage_record),
            *files.routes(folder, folder_calls, gateway),
            *batches.routes(folder, folder_calls, gateway),
            *message_batches.routes(folder, folder_calls, gateway),
            *instances.routes(sources, worker_logs),
            *weights.routes(catalogue, view, agents),
        ],
        guards=[guard.guard],
        lifespan=[run],
        exception_handlers=rejections.handlers,
        request_max_body_size=gateway.max_body_mb * 1024 * 1024,
        openapi_config=None,
        logging_config=None,
    )  # fmt: skip
    entrance = Entrance(exchanges, intake, Uploads(gateway.max_upload_mb * 1024 * 1024, intake.memory), rate_limiter)
    reading = Reading(entrance, images, CacheSalts(key_ring, token))
    table = inference.routes(reading, stored) | media.routes(reading)
    table |= ollama.handlers(ollama_models, intake)
    return Dispatcher(table, rest, guard, rejections, CrossOrigin(gateway.cors_origins), audit_log, gateway.root_path)


def _settle_memory() -> None:
    """Exempt what exists at the start from garbage collection, which otherwise searches it again and again, and collect
    less often: a request leaves almost no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 10, 10)
