"""The launcher: a vLLM that has imported everything, and forks each start. Run by the engine's own Python, by path.

    python process.py ENTRY      ENTRY: a module, or the path of a script
    stdin                       a socket to the agent: a greeting goes out on it, then orders come in

Most of a cold start is importing Python, three times over: in the API server, in the engine core, in each worker
process. This process does all these imports once and then waits. For each start it forks a child. The child leads a
session and group of its own, takes on the instance's arguments, environment, output, control group and marker, and runs
the entry point that a plain start runs. The launcher stays as it is and can fork the next start at once.

No file of vLLM is changed. What vLLM would start with `spawn` is forked too, by a fork server that the instance forks
from itself before it runs: it inherits session, control group and marker. A child of it begins with what a spawned one
would have: the environment, arguments and output of its parent. A parked launcher must not touch a GPU, because a
process that has initialised CUDA cannot fork children that use it.

The engine's Python has no cortex, so this module imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARKER, PAD = "CORTEX_INSTANCE", "CORTEX_PAD"
LOG = "CORTEX_LOG_FILE"
"""Variables: the process's instance; padding for a longer name; the file that a child's output goes to."""
ORDER_BYTES = 4096

IMPORTS = (
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core_client",
    "vllm.tool_parsers",
    "vllm.reasoning",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.models.registry",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen2",
    "vllm.model_executor.models.qwen3",
    "vllm.compilation.backends",
    "vllm.v1.structured_output",
    "transformers",
    "transformers.models.auto.configuration_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
)
"""Modules of the API server, the engine core and its workers. A version of vLLM may lack some of them."""
BY_PLATFORM = {
    "cpu": ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner", "vllm.v1.attention.backends.cpu_attn"),
    "cuda": (
        "vllm.v1.worker.gpu_worker",
        "vllm.v1.worker.gpu_model_runner",
        "vllm.v1.attention.backends.flash_attn",
        "vllm.v1.attention.backends.flashinfer",
    ),
}
REQUIRED = "vllm.v1.engine.core"

# The first thing that a child of the fork server runs: it takes its parent's environment and output.
_TAKE_OVER = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.environ.clear()
os.environ.update({env!r})
log = os.environ.get({log!r})
if log:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(fd, 1); os.dup2(fd, 2); os.close(fd)
sys.modules["__main__"].forget_devices()
"""


class _TakeOver:
    """A value whose unpickling runs `_TAKE_OVER` with this process's environment."""

    def __reduce__(self) -> tuple[Any, ...]:
        code = _TAKE_OVER.format(env=dict(os.environ), log=LOG)
        return exec, (code, {"__name__": "cortex_take_over"})


# Parking.


def park() -> dict[str, Any]:
    """Import everything. Return facts for the agent's log. Raises RuntimeError when forked starts would not work."""
    replace_setproctitle()
    for name in IMPORTS:
        _try_import(name)
    platform = _platform()
    for name in BY_PLATFORM.get(platform, BY_PLATFORM["cuda"]):
        _try_import(name)
    if REQUIRED not in sys.modules:
        raise RuntimeError("the launcher could not import the engine's core")
    if touched_a_gpu():
        raise RuntimeError("importing the engine initialised CUDA")
    inspect_models_in_children()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page with an object
    modules = sum(1 for m in sys.modules if m.startswith("vllm."))
    return {"parked": True, "platform": platform, "modules": modules, "threads": threading.active_count()}


def touched_a_gpu() -> bool:
    """Return whether this process has initialised CUDA."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return True
    if "libcuda.so" not in Path("/proc/self/maps").read_text():
        return False
    # The driver is loaded. Until it is initialised, every call returns this error.
    count = ctypes.c_int()
    not_initialised = 3
    return bool(ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)) != not_initialised)


def inspect_models_in_children() -> None:
    """Make vLLM inspect a model's class in a child of the fork server.

    vLLM itself does so in a new Python that imports all of vLLM, unless an earlier start left the answer in its cache.
    """
    registry = sys.modules.get("vllm.model_executor.models.registry")
    original = getattr(registry, "_run_in_subprocess", None)
    if registry is None or original is None:
        return

    def run(inspect: Any) -> Any:
        try:
            cloudpickle = importlib.import_module("cloudpickle")
            context: Any = multiprocessing.get_context("spawn")
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_inspect, args=(cloudpickle.dumps(inspect), sender))
            child.start()
            sender.close()
            answer = receiver.recv()
            child.join()
            return answer
        except Exception as error:
            print(f"launcher: a model could not be inspected in a child: {error}", file=sys.stderr)
            return original(inspect)

    registry._run_in_subprocess = run  # type: ignore[attr-defined]


def _inspect(pickled: bytes, sender: Any) -> None:
    importlib.import_module("vllm.plugins").load_general_plugins()
    sender.send(pickle.loads(pickled)())  # noqa: S301 (pickled by this process's parent)


def replace_setproctitle() -> None:
    """Let vLLM's processes name themselves, as `VLLM::EngineCore`.

    The library does not find the memory of the arguments once the environment is replaced, and overwrites the marker
    where it does.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("setproctitle").setproctitle = set_title  # type: ignore[attr-defined]


def set_title(title: str) -> None:
    """Write a title over this process's arguments and name, as `ps` and `nvidia-smi` show them."""
    with contextlib.suppress(OSError):
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        begin, end = int(fields[45]), int(fields[46])
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(begin)
            memory.write(title.encode()[: end - begin - 1].ljust(end - begin, b"\0"))
        Path("/proc/self/comm").write_bytes(title.encode()[:15])


def _platform() -> str:
    try:
        from vllm.platforms import current_platform

        return "cpu" if current_platform.is_cpu() else "cuda"
    except Exception as error:
        print(f"launcher: the platform is unknown: {error}", file=sys.stderr)
        return "cuda"


def _try_import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"launcher: {name}: {error}", file=sys.stderr)


# Forking a start.


def serve(line: socket.socket) -> socket.socket:
    """Carry out the agent's orders until its end closes; then this process exits. In the child of a start, return the
    child's own socket.

    {"start": true}, with a socket   fork a start, which talks on that socket
    {"exit_of": PID}                 answer {"code": CODE} for a start that has exited; null: not a child, or it runs
    """
    while True:
        data, sockets, _, _ = socket.recv_fds(line, ORDER_BYTES, 1)
        if not data:
            os._exit(0)
        order = json.loads(data)
        if "exit_of" in order:
            line.sendall(json.dumps({"code": _exit_code(order["exit_of"])}).encode() + b"\n")
            continue
        pid = os.fork()
        if pid == 0:
            os.setsid()
            line.close()
            return socket.socket(fileno=sockets[0])
        for descriptor in sockets:
            os.close(descriptor)


def _exit_code(pid: int) -> int | None:
    try:
        exited, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if exited else None


def read_job(line: socket.socket) -> dict[str, Any]:
    """Greet the agent and return its job. Exits when the agent gives up."""
    line.set_inheritable(False)
    line.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
    received = b""
    while not received.endswith(b"\n"):
        piece = line.recv(65536)
        if not piece:
            os._exit(0)
        received += piece
    job: dict[str, Any] = json.loads(received)
    return job


def become(job: dict[str, Any]) -> None:
    """Take on an instance: its control group, marker, environment, output, arguments and fork server."""
    if job.get("group"):
        Path(job["group"]).write_text(str(os.getpid()))
    rename(os.getpid(), job["env"][MARKER])
    os.environ.clear()
    os.environ.update(job["env"])
    os.environ[LOG] = job["log"]
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.argv = job["argv"]
    # Instances of one launcher share neither secrets nor random numbers.
    multiprocessing.current_process().authkey = os.urandom(32)
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
    forget_devices()
    start_fork_server()


def rename(pid: int, marker: str) -> None:
    """Overwrite the marker that a process was started with, where `/proc/PID/environ` shows it.

    Setting a variable changes only what the process itself sees. The padding is the variable after the marker. Raises
    ValueError when it is too short.
    """
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    begin, end = int(fields[47]), int(fields[48])
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(begin)
        block = memory.read(end - begin)
        at = block.index(f"{MARKER}=".encode())
        name_end = block.index(b"\0", at)
        if not block[name_end + 1 :].startswith(f"{PAD}=".encode()):
            raise ValueError("the marker has no padding")
        room = block.index(b"\0", name_end + 1) - at
        named = f"{MARKER}={marker}\0{PAD}=".encode()
        if len(named) > room:
            raise ValueError("the marker is too long")
        memory.seek(begin + at)
        memory.write(named.ljust(room, b"-"))


def forget_devices() -> None:
    """Clear the caches that the engine filled before this process knew its devices."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("vllm.platforms", "torch.cuda")):
            for holder in (module, *(v for v in vars(module).values() if isinstance(v, type))):
                for value in list(vars(holder).values()):
                    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                    if isinstance(function, functools._lru_cache_wrapper):
                        function.cache_clear()


# The fork server of an instance.


def start_fork_server() -> None:
    """Fork multiprocessing's fork server from this process, and route `spawn` to it.

    multiprocessing would start it as a new Python, which would import everything again.
    """
    from multiprocessing import forkserver, resource_tracker, util

    _route_spawn()
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None  # the launcher's own, if it has one
    resource_tracker.ensure_running()
    server: Any = forkserver._forkserver
    server.set_forkserver_preload([])
    before, spawn = _open_descriptors(), util.spawnv_passfds

    def fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            for descriptor in _open_descriptors() - before - set(passfds):
                with contextlib.suppress(OSError):
                    os.close(descriptor)  # among them the end whose closing tells the server to exit
            server.__init__()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it exits after the last process that uses it
            exec(args[-1], {})  # noqa: S102 (multiprocessing's own `-c` argument)
        except SystemExit:
            pass
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)

    util.spawnv_passfds = fork
    try:
        server.ensure_running()
    finally:
        util.spawnv_passfds = spawn


def _route_spawn() -> None:
    """Use the fork server for `spawn`, in this process and its descendants."""
    from multiprocessing import forkserver, resource_tracker, spawn

    original_data = spawn.get_preparation_data

    def preparation_data(name: str) -> dict[str, Any]:
        # A dict is unpickled in order: the child takes over before it reads anything else.
        return {"cortex": _TakeOver(), **original_data(name)}

    spawn.get_preparation_data = preparation_data
    contexts: dict[str, Any] = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = contexts["forkserver"]

    server: Any = forkserver._forkserver
    start = server.ensure_running

    def ensure_running() -> None:
        # A child of the server uses its parent's server: its own would import again.
        if server._forkserver_pid is None and server._forkserver_address and server._forkserver_alive_fd is not None:
            resource_tracker.ensure_running()
            return
        start()

    server.ensure_running = ensure_running


def _open_descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 (names alone)


# The process.


def run(entry: str) -> None:
    """Run the engine's entry point as its own command would. `__main__` stays this module."""
    if entry.startswith("/"):
        code = compile(Path(entry).read_bytes(), entry, "exec")
        exec(code, {"__name__": "__main__", "__file__": entry})  # noqa: S102 (the engine's own command)
        return
    import runpy

    runpy.run_module(entry, run_name="__main__", alter_sys=False)


def main() -> None:
    """Park, fork starts, and in the child of a start become the instance."""
    entry = sys.argv[1]
    line = socket.socket(fileno=os.dup(0))
    line.set_inheritable(False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    began = time.monotonic()
    facts = park()
    facts["seconds"] = round(time.monotonic() - began, 2)
    line.sendall(json.dumps(facts).encode() + b"\n")
    own = serve(line)
    become(read_job(own))
    own.close()
    run(entry)


if __name__ == "__main__":
    # Names in this file's folder would hide the engine's modules.
    here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here]
    main()
