"""How each client is run without a person: its command, its environment, its files."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from tests.clients.cases import Case

PATIENCE_S = 150
PROGRAMS = Path(__file__).parent / "programs"


class Ran(Struct, frozen=True):
    """What came of a run."""

    output: str
    failed: bool


class Place(Struct, frozen=True):
    """Where a client runs: the clients' folder, its home, the folder it works in, and the router's port."""

    clients: Path
    home: Path
    folder: Path
    port: int

    @property
    def root(self) -> str:
        """The URL of the router."""
        return f"http://127.0.0.1:{self.port}"

    def run(self, argv: list[str], env: Mapping[str, str] | None = None) -> Ran:
        """Run a command to its end, in a session of its own that is ended with it."""
        inherited = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "dumb"}
        process = subprocess.Popen(
            argv,
            cwd=self.folder,
            env={**inherited, "HOME": str(self.home), "NO_COLOR": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
            return Ran(output, process.returncode != 0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return Ran(f"{output}\n(it did not end within {PATIENCE_S} s)", failed=True)

    def node(self, name: str) -> str:
        """The path of an npm client."""
        return str(self.clients / "node_modules" / ".bin" / name)

    def program(self, name: str, case: Case) -> Ran:
        """Run one of our small programs in the clients' Python."""
        python = str(self.clients / "python" / "bin" / "python")
        return self.run([python, str(PROGRAMS / f"{name}.py"), *self._arguments(case)])

    def script(self, name: str, case: Case) -> Ran:
        """Run one of our small programs in Node, with the clients' packages."""
        return self.run(["node", str(PROGRAMS / f"{name}.mjs"), *self._arguments(case)], {"CLIENTS": str(self.clients)})

    def _arguments(self, case: Case) -> list[str]:
        return [self.root, case.model, case.prompt, "plain" if case.name == "plain" else "streamed"]


def claude(place: Place, case: Case) -> Ran:
    """Claude Code."""
    quiet = ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY", "DISABLE_ERROR_REPORTING")
    env = {
        **dict.fromkeys((*quiet, "DISABLE_AUTOUPDATER", "IS_SANDBOX"), "1"),
        "ANTHROPIC_BASE_URL": place.root,
        "ANTHROPIC_AUTH_TOKEN": "dummy",
        "CLAUDE_CODE_MAX_RETRIES": "1",
    }
    argv = [place.node("claude"), "-p", case.prompt, "--model", case.model, "--output-format", "json"]
    return place.run([*argv, "--allowedTools", "Bash,Read"], env)


def codex(place: Place, case: Case) -> Ran:
    """Codex."""
    settings = {
        "model_provider": "cortex",
        "model_providers.cortex.name": "cortex",
        "model_providers.cortex.base_url": f"{place.root}/v1",
        "model_providers.cortex.env_key": "CORTEX_KEY",
        "model_providers.cortex.wire_api": "responses",
        "analytics.enabled": "false",
        "check_for_update_on_startup": "false",
    }
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    argv = [place.node("codex"), "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    return place.run([*argv, *options, "-m", case.model, case.prompt], {"CORTEX_KEY": "dummy"})


def opencode(package: str, path: str) -> Callable[[Place, Case], Ran]:
    """opencode, in the dialect of one of its packages."""

    def run(place: Place, case: Case) -> Ran:
        senses = {"input": ["text", "image"], "output": ["text"]}
        model = {"limit": {"context": 200000, "output": 4096}, "attachment": True, "modalities": senses}
        provider = {
            "npm": package,
            "options": {"baseURL": f"{place.root}{path}", "apiKey": "dummy"},
            "models": {case.model: model},
        }
        config = {
            "share": "disabled",
            "autoupdate": False,
            "provider": {"cortex": provider},
            "model": f"cortex/{case.model}",
            "permission": {"bash": "allow", "read": "allow", "external_directory": "allow"},
        }
        (place.folder / "opencode.json").write_text(json.dumps(config))
        env = {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"}
        return place.run([place.node("opencode"), "run", case.prompt], env)

    return run


def llm(place: Place, case: Case) -> Ran:
    """Simon Willison's llm, with tools of our own."""
    home = place.home / "llm"
    home.mkdir(exist_ok=True)
    model = {"model_id": "cortex", "model_name": case.model, "api_base": f"{place.root}/v1"}
    (home / "extra-openai-models.yaml").write_text(
        json.dumps([{**model, "supports_tools": True, "vision": True}])  # JSON is YAML
    )
    command = [str(place.clients / "python" / "bin" / "llm"), "-m", "cortex", "--key", "dummy", case.prompt]
    if case.name == "plain":
        command.append("--no-stream")
    if case.files or case.name == "image":
        command += ["--functions", str(PROGRAMS / "llm_tools.py")]
    return place.run(command, {"LLM_USER_PATH": str(home)})


CLIENTS: dict[str, Callable[[Place, Case], Ran]] = {
    "Claude Code": claude,
    "Codex": codex,
    "opencode (chat)": opencode("@ai-sdk/openai-compatible", "/v1"),
    "opencode (messages)": opencode("@ai-sdk/anthropic", "/v1"),
    "opencode (responses)": opencode("@ai-sdk/openai", "/v1"),
    "llm": llm,
    "openai SDK (chat)": lambda place, case: place.program("openai_chat", case),
    "openai SDK (responses)": lambda place, case: place.program("openai_responses", case),
    "anthropic SDK": lambda place, case: place.program("anthropic_messages", case),
    "ollama (Python)": lambda place, case: place.program("ollama_chat", case),
    "ollama (JavaScript)": lambda place, case: place.script("ollama_chat", case),
    "LangChain (Ollama)": lambda place, case: place.program("langchain_ollama_chat", case),
    "LlamaIndex (Ollama)": lambda place, case: place.program("llamaindex_ollama_chat", case),
}
