"""A parked vLLM, which has finished its imports and waits for a job. The engine's own Python runs this file by path.

    python process.py ENTRY      ENTRY: a module, or the path of a script
    stdin                       a socket: the process writes a greeting to it, then reads one job

Most of a cold start is Python's imports, in three processes: the front end, the engine's core, and each worker. This
process imports the modules of the front end, starts `multiprocessing`'s fork server with the other modules preloaded,
and waits for one job. Then it *becomes* the instance: it takes the instance's arguments, environment, output, control
group and marker, and runs the same entry point as a plain start. It leads its own session and group from the beginning.

vLLM's files are unchanged. The only difference is that processes which vLLM spawns, to serve or to inspect a model's
class, are forked from the fork server. Such a child starts with the environment, arguments and output of its parent,
like a spawned one. A parked process must not use a GPU, since the devices are part of the job.

The engine's Python has no cortex, so this file imports the standard library only. multiprocessing runs it again as
`__mp_main__` in every child, where it makes the same change.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

MARKER, PAD = "CORTEX_INSTANCE", "CORTEX_PAD"
LOG = "CORTEX_LOG_FILE"
"""Variables: the instance of the process; padding for a longer name; the log file for children's output."""

FRONT = (
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core_client",
    "vllm.tool_parsers",
    "vllm.reasoning",
    "transformers",
)
PRELOADED = (
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
BY_PLATFORM = {
    "cpu": ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner", "vllm.v1.attention.backends.cpu_attn"),
    "cuda": (
        "vllm.v1.worker.gpu_worker",
        "vllm.v1.worker.gpu_model_runner",
        "vllm.v1.attention.backends.flash_attn",
        "vllm.v1.attention.backends.flashinfer",
    ),
}

# The first code that a child of the fork server runs: it takes over its parent's environment and output. It is text,
# because the child may have no module of cortex.
_CHILD_SETUP = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.environ.clear()
os.environ.update({env!r})
log = os.environ.get({log!r})
if log:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(fd, 1); os.dup2(fd, 2); os.close(fd)
clear = getattr(sys.modules.get("__mp_main__"), "clear_device_caches", None)
if clear:
    clear()
"""


class _ChildSetup:
    """A value that runs the setup code when a child unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        code = _CHILD_SETUP.format(env=dict(os.environ), log=LOG)
        return exec, (code, {"__name__": "cortex_child_setup"})


def spawn_from_fork_server() -> None:
    """Make this process fork from the fork server whenever it would spawn."""
    from multiprocessing import forkserver, resource_tracker, spawn

    if getattr(spawn, "_cortex", False):
        return
    spawn._cortex = True  # type: ignore[attr-defined]
    original = spawn.get_preparation_data

    def preparation_data(name: str) -> dict[str, Any]:
        data = original(name)
        if name == "ignore":  # used by the fork server itself, which must run this file, too
            return {**data, "main_path": data.get("init_main_from_path")}
        # A dict is pickled in order, so the setup runs first.
        return {"cortex": _ChildSetup(), **data}

    spawn.get_preparation_data = preparation_data

    contexts: dict[str, Any] = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = contexts["forkserver"]

    server: Any = forkserver._forkserver
    start = server.ensure_running

    def ensure_running() -> None:
        # A child uses the server that it was forked from; otherwise it would start another one, and import again.
        if server._forkserver_pid is None and server._forkserver_address and server._forkserver_alive_fd is not None:
            resource_tracker.ensure_running()
            return
        start()

    server.ensure_running = ensure_running


if __name__ in ("__main__", "__mp_main__"):
    spawn_from_fork_server()
if __name__ == "__mp_main__" and sys.argv[:1] == ["-c"]:
    # The fork server ignores TERM to the group, which is for serving processes. It ends with the last of them.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# The following runs in the parked process only.


def rewrite_marker(pid: int, marker: str) -> None:
    """Overwrite a process's marker in the memory that `/proc/PID/environ` shows.

    Setting the variable would not change that memory. A longer marker uses the space of the padding after it.
    """
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    begin, end = int(fields[47]), int(fields[48])
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(begin)
        block = memory.read(end - begin)
        at = block.index(f"{MARKER}=".encode())
        name_end = block.index(b"\0", at)
        if not block[name_end + 1 :].startswith(f"{PAD}=".encode()):
            raise ValueError("there is no padding after the marker")
        room = block.index(b"\0", name_end + 1) - at
        text = f"{MARKER}={marker}\0{PAD}=".encode()
        if len(text) > room:
            raise ValueError("the marker is too long")
        memory.seek(begin + at)
        memory.write(text.ljust(room, b"-"))


def clear_device_caches() -> None:
    """Clear cached facts about devices from before this process got its own devices."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("vllm.platforms", "torch.cuda")):
            for holder in (module, *(v for v in vars(module).values() if isinstance(v, type))):
                for value in list(vars(holder).values()):
                    clear = getattr(getattr(value, "__func__", value), "cache_clear", None)
                    if callable(clear):
                        clear()


def has_initialised_cuda() -> bool:
    """Return whether this process has initialised CUDA. A parked one must not, or its children cannot use it."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return True
    if "libcuda.so" not in Path("/proc/self/maps").read_text():
        return False
    # The driver is loaded; before its initialisation, every call returns this error.
    count = ctypes.c_int()
    not_initialised = 3
    return bool(ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)) != not_initialised)


def _child(answer: Any) -> None:
    answer.send((has_initialised_cuda(), sorted(m for m in sys.modules if m.startswith("vllm."))))


def park() -> dict[str, Any]:
    """Import the modules, start the fork server, and test one of its children. Return the greeting."""
    for name in FRONT:
        _try_import(name)
    platform = _platform()
    multiprocessing.set_forkserver_preload(["__main__", *PRELOADED, *BY_PLATFORM.get(platform, BY_PLATFORM["cuda"])])
    context: Any = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender,))
    child.start()
    sender.close()
    initialised, modules = receiver.recv()
    child.join()
    if initialised or has_initialised_cuda():
        raise RuntimeError("importing the engine initialised CUDA")
    inspect_models_in_children()
    if "vllm.v1.engine.core" not in modules:
        raise RuntimeError("the fork server could not import the engine's core")
    return {"parked": True, "platform": platform, "modules": len(modules)}


def inspect_models_in_children() -> None:
    """Make vLLM inspect a model's class in a child of the fork server.

    By itself vLLM starts a new Python that imports all of vLLM, unless the result is in its cache.
    """
    registry = sys.modules.get("vllm.model_executor.models.registry")
    original = getattr(registry, "_run_in_subprocess", None)
    if registry is None or original is None:
        return

    def run(function: Any) -> Any:
        try:
            cloudpickle = importlib.import_module("cloudpickle")
            context: Any = multiprocessing.get_context("spawn")
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_call, args=(cloudpickle.dumps(function), sender))
            child.start()
            sender.close()
            result = receiver.recv()
            child.join()
            return result
        except Exception as error:
            print(f"parked: cannot inspect a model in a child: {error}", file=sys.stderr)
            return original(function)

    registry._run_in_subprocess = run  # type: ignore[attr-defined]


def _call(function: bytes, sender: Any) -> None:
    importlib.import_module("vllm.plugins").load_general_plugins()
    sender.send(pickle.loads(function)())  # noqa: S301 (from our own parent)


def _platform() -> str:
    try:
        from vllm.platforms import current_platform

        return "cpu" if current_platform.is_cpu() else "cuda"
    except Exception as error:
        print(f"parked: unknown platform: {error}", file=sys.stderr)
        return "cuda"


def _try_import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:  # this version of the engine lacks the module: its replacement is imported later
        print(f"parked: {name}: {error}", file=sys.stderr)


def become(job: dict[str, Any]) -> None:
    """Become an instance: take its control group, marker, environment, output and arguments."""
    from multiprocessing import forkserver, resource_tracker

    server, tracker = forkserver._forkserver, resource_tracker._resource_tracker
    helpers = [p for p in (server._forkserver_pid, tracker._pid) if p]  # type: ignore[attr-defined]
    if job.get("group"):
        for pid in (os.getpid(), *helpers):
            Path(job["group"]).write_text(str(pid))
    rewrite_marker(os.getpid(), job["env"][MARKER])
    for pid in helpers:
        with contextlib.suppress(OSError):  # a kernel may forbid it; the agent also finds them by their session
            rewrite_marker(pid, job["env"][MARKER])
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
    clear_device_caches()


def run(entry: str) -> None:
    """Run the engine's entry point like its own command, while this file stays `__main__`."""
    if entry.startswith("/"):
        code = compile(Path(entry).read_bytes(), entry, "exec")
        exec(code, {"__name__": "__main__", "__file__": entry})  # noqa: S102 (the engine's own command)
        return
    import runpy

    runpy.run_module(entry, run_name="__main__", alter_sys=False)


def main() -> None:
    """Park, wait for a job, and become its instance."""
    entry = sys.argv[1]
    line = socket.socket(fileno=os.dup(0))
    line.set_inheritable(False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    start = time.monotonic()
    greeting = park()
    greeting["seconds"] = round(time.monotonic() - start, 2)
    line.sendall(json.dumps(greeting).encode() + b"\n")
    job = b""
    while not job.endswith(b"\n"):
        chunk = line.recv(65536)
        if not chunk:
            os._exit(0)  # the agent has ended
        job += chunk
    become(json.loads(job))
    line.close()
    run(entry)


if __name__ == "__main__":
    # Remove this file's folder from the path: its names would hide the engine's.
    folder = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != folder]
    main()
