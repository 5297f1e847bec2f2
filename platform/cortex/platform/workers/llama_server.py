"""llama.cpp's own HTTP server in a Python process, for hosts without a `llama-server` binary.

`python -m cortex.platform.workers.llama_server` takes the flags of `llama-server` that cortex uses, with their upstream
meaning, so one argv fits both: `--ctx-size` is the total of all slots, and each of the `--parallel` slots gets an
equal share. An unknown flag is an error. The API key comes from `LLAMA_API_KEY`.

The HTTP server, its queue and its threads are C++ (package `xllamacpp`); Python starts them and waits for a
signal. Its three rules:

- Listen on one unshared address before the model is loaded; until then `/health` answers 503.
- Exit with a code for the parent: 0 after TERM or INT, 1 with the reason as the last line on stderr, 2 for an invalid
  command line. Until it serves, a signal kills it directly: llama.cpp holds the interpreter during loading.
- Never log a prompt. llama.cpp logs each malformed request as a warning and quotes it, so once it serves, only errors
  are logged.

Startup time is cold-start time, so modules are imported only where needed.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cortex.platform import text_files

PROGRAM = "llama_server"

# llama.cpp's levels of verbosity.
LOG_ERRORS = 1
LOG_INFO = 3

LAYERS = {"auto": -1, "all": -2}
ATTENTION = {"auto": -1, "off": 0, "on": 1}
CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
"""Numbers of ggml's types that the cache of keys and values may have."""


# Not a msgspec.Struct: its import would take a third of the startup.
class Options(NamedTuple):
    """The parsed command line. None means llama.cpp's own default."""

    model: Path
    alias: str | None
    host: str
    port: int
    ctx_size: int
    parallel: int
    n_gpu_layers: int | None
    threads: int | None
    batch_size: int | None
    ubatch_size: int | None
    cache_ram: int | None
    threads_batch: int | None
    flash_attn: str | None
    cache_type_k: str | None
    cache_type_v: str | None
    cache_reuse: int | None
    swa_full: bool
    no_kv_offload: bool
    no_warmup: bool
    kv_unified: bool
    embeddings: bool
    rerank: bool
    mmproj: Path | None
    chat_template_file: Path | None
    lora: list[Path]
    lora_init_without_apply: bool
    slots: bool
    slot_save_path: Path | None
    metrics: bool


class ServerError(Exception):
    """The server cannot start; the text is the reason, in one line."""


def parse(argv: Sequence[str]) -> Options:
    """Parse the command line. Exits with 2 when it is invalid."""
    parser = argparse.ArgumentParser(prog=PROGRAM, allow_abbrev=False, description=__doc__.partition("\n")[0])
    flag = parser.add_argument
    flag("-m", "--model", type=Path, required=True, help="GGUF file")
    flag("-a", "--alias", help="the model's id in /v1/models and in answers")
    flag("--host", default="127.0.0.1")
    flag("--port", type=int, default=8080, help="0 takes a free one and logs it")
    flag("-c", "--ctx-size", type=int, default=0, help="tokens of all slots together; 0 is the model's own")
    flag("-np", "--parallel", type=int, default=1, help="slots, that is requests at a time")
    flag("-ngl", "--n-gpu-layers", "--gpu-layers", type=_layers, help="a number, 'auto' or 'all'")
    flag("-t", "--threads", type=int)
    flag("-tb", "--threads-batch", type=int)
    flag("-b", "--batch-size", type=int)
    flag("-ub", "--ubatch-size", type=int, help="also the longest input of an embedding model")
    flag("-cram", "--cache-ram", type=int, help="MiB for the prompts of idle slots; 0 is none")
    flag("-fa", "--flash-attn", nargs="?", const="on", choices=ATTENTION)
    flag("-ctk", "--cache-type-k", choices=CACHE_TYPES)
    flag("-ctv", "--cache-type-v", choices=CACHE_TYPES)
    flag("--cache-reuse", type=int, help="the shortest piece of a prompt that is found again at another place")
    flag("--swa-full", action="store_true", help="keep the whole context of models with a sliding window")
    flag("-nkvo", "--no-kv-offload", action="store_true")
    flag("--no-warmup", action="store_true")
    flag("-kvu", "--kv-unified", action="store_true", help="let all slots share the context")
    flag("--embeddings", "--embedding", action="store_true")
    flag("--rerank", "--reranking", action="store_true")
    flag("-mm", "--mmproj", type=Path, help="GGUF file of the vision encoder")
    flag("--chat-template-file", type=Path)
    flag("--lora", type=Path, action="append", default=[], help="GGUF file of an adapter; may be given again")
    flag("--lora-init-without-apply", action="store_true", help="load adapters for requests that name them")
    flag("--slots", action="store_true", help="serve /slots")
    flag("--slot-save-path", type=Path, help="folder in which POST /slots/N?action=save saves a slot")
    flag("--metrics", action="store_true", help="serve /metrics")
    # These are always on; accepted because llama-server takes the same argv.
    always = ("--jinja", "--no-webui", "--no-ui", "--no-slots", "--no-context-shift")
    flag(*always, action="store_true", help="always so")
    values = vars(parser.parse_args(argv))
    return Options(**{field: values[field] for field in Options._fields})


def _layers(text: str) -> int:
    try:
        return LAYERS[text] if text in LAYERS else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 'auto' or 'all'") from None


def start(options: Options, key: str) -> Any:
    """Bind, load, serve. Returns the running server, which lives while it is referenced."""
    for path in filter(None, (options.model, options.mmproj, *options.lora)):
        _require_gguf(path)
    import xllamacpp

    set_verbosity = _verbosity_setter(xllamacpp.xllamacpp.__file__)
    params = xllamacpp.CommonParams()
    params.verbosity = LOG_INFO if set_verbosity else LOG_ERRORS
    params.model.path = str(options.model)
    if options.alias is not None:
        params.model_alias = {options.alias}
    params.hostnames = [options.host]
    params.port = options.port
    params.api_keys = [key] if key else []
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.kv_unified = options.kv_unified
    if options.n_gpu_layers is not None:
        params.n_gpu_layers = options.n_gpu_layers
    if options.threads is not None:
        params.cpuparams.n_threads = options.threads
        params.cpuparams_batch.n_threads = options.threads
    if options.threads_batch is not None:
        params.cpuparams_batch.n_threads = options.threads_batch
    if options.batch_size is not None:
        params.n_batch = options.batch_size
    if options.ubatch_size is not None:
        params.n_ubatch = options.ubatch_size
    if options.cache_ram is not None:
        params.cache_ram_mib = options.cache_ram
    if options.flash_attn is not None:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type(ATTENTION[options.flash_attn])
    if options.cache_type_k is not None:
        params.cache_type_k = xllamacpp.ggml_type(CACHE_TYPES[options.cache_type_k])
    if options.cache_type_v is not None:
        params.cache_type_v = xllamacpp.ggml_type(CACHE_TYPES[options.cache_type_v])
    if options.cache_reuse is not None:
        params.n_cache_reuse = options.cache_reuse
    params.swa_full, params.no_kv_offload = options.swa_full, options.no_kv_offload
    params.warmup = not options.no_warmup
    params.embedding = options.embeddings or options.rerank
    if options.rerank:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if options.mmproj is not None:
        params.mmproj.path = str(options.mmproj)
    if options.chat_template_file is not None:
        params.chat_template = _text(options.chat_template_file)
    adapters = []
    for path in options.lora:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = str(path), 0.0 if options.lora_init_without_apply else 1.0
        adapters.append(adapter)
    if adapters:
        params.lora_adapters = adapters
    params.lora_init_without_apply = options.lora_init_without_apply
    params.ui = False
    params.endpoint_slots = options.slots
    if options.slot_save_path is not None:
        params.slot_save_path = f"{options.slot_save_path}/"  # llama.cpp appends the name of the file
    params.endpoint_metrics = options.metrics

    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        # The exception has no details; the reason is in llama.cpp's log, above the last line.
        raise ServerError(_failure_reason(options)) from None
    if set_verbosity:
        set_verbosity(LOG_ERRORS)
    return server


def _require_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise ServerError(f"cannot load {path}: it is not a GGUF file")


def _text(path: Path) -> str:
    try:
        return text_files.read(path)
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ServerError(f"cannot read {path}: it is not UTF-8") from None


def _failure_reason(options: Options) -> str:
    import socket
    import time

    # llama.cpp logs from its own thread: let it finish, so that the reason is the last line.
    time.sleep(0.05)
    try:
        family, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return f"cannot listen on {options.host}:{options.port}: {error.strerror}"
    return f"cannot load {options.model}: llama.cpp gives the reason above"


def _verbosity_setter(library: str) -> Callable[[int], None] | None:
    """Return the setter of llama.cpp's verbosity, which its Python API lacks; None if the symbol is missing."""
    import ctypes

    try:
        setter = ctypes.CDLL(library)._Z30common_log_set_verbosity_tholdi
    except (OSError, AttributeError):
        return None
    setter.argtypes = [ctypes.c_int]
    setter.restype = None
    return setter


def catch_stop() -> int:
    """Make TERM and INT write to a pipe instead of ending the process; return its read end."""
    # The kernel may deliver the signal to any of llama.cpp's threads, which would not wake `signal.pause()` here.
    # From every thread, the interpreter's handler writes to this pipe.
    stopped, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return stopped


def main() -> NoReturn:
    """Serve until TERM or INT."""
    # Python's own handler of INT would wait for the model.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    options = parse(sys.argv[1:])
    # Child processes must not inherit the key. /proc still shows it to the same user.
    key = os.environ.pop("LLAMA_API_KEY", "")
    try:
        server = start(options, key)
    except ServerError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        sys.exit(1)
    stopped = catch_stop()
    print(f"{PROGRAM}: serving {options.model} on {server.listening_address}", file=sys.stderr, flush=True)
    os.read(stopped, 1)
    print(f"{PROGRAM}: stopped", file=sys.stderr, flush=True)
    # Skip the destructors, which wait for running requests. The kernel frees the memory.
    os._exit(0)


if __name__ == "__main__":
    main()
