"""A vLLM that has imported everything and waits for its work: run by the engine's own Python, by path.

    python process.py ENTRY      ENTRY: a module, or the path of a script
    stdin                       a socket: "parked" goes out on it, then one job comes in

Most of a cold start is importing Python, three times over: in the front, in the engine's core, in each worker.
This process imports what the front needs and starts `multiprocessing`'s own fork server with the rest preloaded; it
then waits for one job. With it, it *becomes* the instance: its arguments, environment, output, control group and
marker are the instance's from then on, and it runs the very entry point a plain start runs. It was the leader of a
session and group of its own from the beginning.

No file of vLLM is touched. One thing is made otherwise: whatever vLLM would spawn, to serve or to look at a model's
class, comes out of the fork server. A child of it starts with what a spawned one would have: the environment,
arguments and output of the process that wanted it. Nothing that is parked may touch a GPU: devices are part of the
job.

It stands alone: the engine's Python knows nothing of cortex, so only the standard library is imported here. It runs
again as `__mp_main__` in every child (multiprocessing does so), and puts the same thing in place there.
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
"""Variables: whose process it is; room to write a longer name into; where a child's output goes."""

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
BEHIND = (
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

# What a child of the fork server does first, before it reads anything else: it takes on its parent's environment and
# output. As text, because it has to run in a process that may know no module of ours.
_TAKE_ON = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.environ.clear()
os.environ.update({env!r})
log = os.environ.get({log!r})
if log:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(fd, 1); os.dup2(fd, 2); os.close(fd)
forget = getattr(sys.modules.get("__mp_main__"), "forget_devices", None)
if forget:
    forget()
"""


class _TakenOn:
    """A value that, when a child unpickles it, has been the child's first deed."""

    def __reduce__(self) -> tuple[Any, ...]:
        code = _TAKE_ON.format(env=dict(os.environ), log=LOG)
        return exec, (code, {"__name__": "cortex_taken_on"})


def put_in_place() -> None:
    """Have everything that would be spawned come from the fork server, from here on and in this process."""
    from multiprocessing import forkserver, resource_tracker, spawn

    if getattr(spawn, "_cortex", False):
        return
    spawn._cortex = True  # type: ignore[attr-defined]
    prepared = spawn.get_preparation_data

    def preparation_data(name: str) -> dict[str, Any]:
        data = prepared(name)
        if name == "ignore":  # the fork server itself asks so: it is to run this file, too
            return {**data, "main_path": data.get("init_main_from_path")}
        # A dict is pickled in order: this is read, and so done, before all else.
        return {"cortex": _TakenOn(), **data}

    spawn.get_preparation_data = preparation_data

    contexts: dict[str, Any] = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = contexts["forkserver"]

    server: Any = forkserver._forkserver
    start = server.ensure_running

    def ensure_running() -> None:
        # A child of the server uses the one it came from: by itself it would start another, and import again.
        if server._forkserver_pid is None and server._forkserver_address and server._forkserver_alive_fd is not None:
            resource_tracker.ensure_running()
            return
        start()

    server.ensure_running = ensure_running


if __name__ in ("__main__", "__mp_main__"):
    put_in_place()
if __name__ == "__mp_main__" and sys.argv[:1] == ["-c"]:
    # The fork server. TERM to the group is for those that serve; it ends when the last of them has.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# Only the parked process itself goes on from here.


def rename(pid: int, marker: str) -> None:
    """Write another name over the marker a process was started with, where `/proc/PID/environ` shows it.

    Setting a variable changes only what the process itself sees. The room is that of the variable after it.
    """
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    begin, end = int(fields[47]), int(fields[48])
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(begin)
        block = memory.read(end - begin)
        at = block.index(f"{MARKER}=".encode())
        name_end = block.index(b"\0", at)
        if not block[name_end + 1 :].startswith(f"{PAD}=".encode()):
            raise ValueError("there is no room after the marker")
        room = block.index(b"\0", name_end + 1) - at
        named = f"{MARKER}={marker}\0{PAD}=".encode()
        if len(named) > room:
            raise ValueError("the marker is too long")
        memory.seek(begin + at)
        memory.write(named.ljust(room, b"-"))


def forget_devices() -> None:
    """Forget what was remembered of devices before this process was told which are its own."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("vllm.platforms", "torch.cuda")):
            for holder in (module, *(v for v in vars(module).values() if isinstance(v, type))):
                for value in list(vars(holder).values()):
                    clear = getattr(getattr(value, "__func__", value), "cache_clear", None)
                    if callable(clear):
                        clear()


def touched_a_gpu() -> bool:
    """Whether this process has initialised CUDA: parked ones must not, for their children could not use it then."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return True
    if "libcuda.so" not in Path("/proc/self/maps").read_text():
        return False
    # The driver is loaded; until somebody initialises it, it answers everything with that it is not.
    count = ctypes.c_int()
    not_initialised = 3
    return bool(ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)) != not_initialised)


def _child(answer: Any) -> None:
    answer.send((touched_a_gpu(), sorted(m for m in sys.modules if m.startswith("vllm."))))


def park() -> dict[str, Any]:
    """Import, start the fork server, and see that a child of it works."""
    for name in FRONT:
        _try_import(name)
    platform = _platform()
    multiprocessing.set_forkserver_preload(["__main__", *BEHIND, *BY_PLATFORM.get(platform, BY_PLATFORM["cuda"])])
    context: Any = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender,))
    child.start()
    sender.close()
    touched, modules = receiver.recv()
    child.join()
    if touched or touched_a_gpu():
        raise RuntimeError("importing the engine initialised CUDA")
    inspect_models_in_children()
    if "vllm.v1.engine.core" not in modules:
        raise RuntimeError("the fork server could not import the engine's core")
    return {"parked": True, "platform": platform, "modules": len(modules)}


def inspect_models_in_children() -> None:
    """Have vLLM look at a model's class in a child of the fork server.

    It does so in a new Python that imports all of vLLM, unless an earlier start has left the answer in its cache.
    """
    registry = sys.modules.get("vllm.model_executor.models.registry")
    by_itself = getattr(registry, "_run_in_subprocess", None)
    if registry is None or by_itself is None:
        return

    def run(ask: Any) -> Any:
        try:
            cloudpickle = importlib.import_module("cloudpickle")
            context: Any = multiprocessing.get_context("spawn")
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_asked, args=(cloudpickle.dumps(ask), sender))
            child.start()
            sender.close()
            answer = receiver.recv()
            child.join()
            return answer
        except Exception as error:
            print(f"parked: a model could not be looked at in a child: {error}", file=sys.stderr)
            return by_itself(ask)

    registry._run_in_subprocess = run  # type: ignore[attr-defined]


def _asked(question: bytes, answer: Any) -> None:
    importlib.import_module("vllm.plugins").load_general_plugins()
    answer.send(pickle.loads(question)())  # noqa: S301 (our own parent's)


def _platform() -> str:
    try:
        from vllm.platforms import current_platform

        return "cpu" if current_platform.is_cpu() else "cuda"
    except Exception as error:
        print(f"parked: the platform is not known: {error}", file=sys.stderr)
        return "cuda"


def _try_import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:  # another version of the engine has it elsewhere: then it is imported later
        print(f"parked: {name}: {error}", file=sys.stderr)


def become(job: dict[str, Any]) -> None:
    """Take on an instance: its environment, its output, its control group, its marker, its arguments."""
    from multiprocessing import forkserver, resource_tracker

    server, tracker = forkserver._forkserver, resource_tracker._resource_tracker
    helpers = [p for p in (server._forkserver_pid, tracker._pid) if p]  # type: ignore[attr-defined]
    if job.get("group"):
        for pid in (os.getpid(), *helpers):
            Path(job["group"]).write_text(str(pid))
    rename(os.getpid(), job["env"][MARKER])
    for pid in helpers:
        with contextlib.suppress(OSError):  # a kernel may forbid it; they are found by their session all the same
            rename(pid, job["env"][MARKER])
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
    forget_devices()


def run(entry: str) -> None:
    """Run the engine's entry point as its own command would, but let this file stay `__main__`."""
    if entry.startswith("/"):
        code = compile(Path(entry).read_bytes(), entry, "exec")
        exec(code, {"__name__": "__main__", "__file__": entry})  # noqa: S102 (the engine's own command)
        return
    import runpy

    runpy.run_module(entry, run_name="__main__", alter_sys=False)


def main() -> None:
    """Park; wait; become."""
    entry = sys.argv[1]
    line = socket.socket(fileno=os.dup(0))
    line.set_inheritable(False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    began = time.monotonic()
    ready = park()
    ready["seconds"] = round(time.monotonic() - began, 2)
    line.sendall(json.dumps(ready).encode() + b"\n")
    received = b""
    while not received.endswith(b"\n"):
        piece = line.recv(65536)
        if not piece:
            os._exit(0)  # whoever parked us is gone
        received += piece
    become(json.loads(received))
    line.close()
    run(entry)


if __name__ == "__main__":
    # The folder of this file is no place to import from: its names would stand before the engine's.
    here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here]
    main()
