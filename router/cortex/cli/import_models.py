"""`cortex import`: prints a `models.toml` for what another tool has."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich_click as click
import yaml

from cortex.cli.exits import Failed
from cortex.cli.imports import litellm, llama_swap, lm_studio, ollama
from cortex.cli.imports.draft import Draft, Entry
from cortex.cli.imports.local_weights import LocalWeights
from cortex.cli.tables import quantity
from cortex.cli.visible import echo, echo_json
from cortex.platform import text_files

OLLAMA, LM_STUDIO = "ollama", "lm-studio"
_KINDS = "llama-swap's configuration has `models:` with a `cmd` each, LiteLLM's a `model_list:`"


@click.command("import")
@click.argument("source")
@click.option("--folder", type=click.Path(path_type=Path), help="Where Ollama or LM Studio keeps its models.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write a new file; one that exists is not changed."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
def import_models(source: str, folder: Path | None, output: Path | None, as_json: bool) -> None:
    """Print a models.toml for the models that another tool has on this machine.

    SOURCE is `ollama`, `lm-studio`, or the configuration file of llama-swap or LiteLLM. Weights on the disk are used
    where they are. What is not carried over is listed on stderr, and in comments.
    """
    draft = _draft(source, folder, LocalWeights(Path.home(), dict(os.environ)))
    draft.check()
    if output is not None:
        _write_new(output, draft.text())
    if as_json:
        entries = [{"id": e.id, **e.keys, "notes": e.notes} for e in draft.entries.values()]
        parts = {"defaults": draft.defaults, "models": entries, "aliases": draft.aliases, "notes": draft.notes}
        echo_json({"origin": draft.origin, **parts}, indent=2)
        return
    if output is None:
        echo(draft.text().rstrip("\n"))
    for note in draft.every_note():
        echo(f"note: {note}", err=True)
    where = f" in {output}" if output else ""
    echo(f"{quantity(len(draft.entries), 'function')}, {quantity(len(draft.aliases), 'alias')}{where}", err=True)


def _draft(source: str, folder: Path | None, weights: LocalWeights) -> Draft:
    """Read a source. Raises Failed."""
    match source:
        case "ollama":
            store = folder or _ollama_folder(weights)
            if store is None or not (store / "manifests").is_dir():
                raise Failed(
                    f"no models of Ollama in {store or ', '.join(ollama.FOLDERS)}",
                    hint="`--folder` or OLLAMA_MODELS names the folder with `manifests` and `blobs`.",
                )
            return ollama.read(store, f"Ollama, {store}", weights.environ)
        case "lm-studio" | "lmstudio":
            home = folder or _lm_studio_home(weights)
            if home is None or not lm_studio.models_folder(home).is_dir():
                raise Failed(
                    f"no models of LM Studio in {home or ', '.join(lm_studio.HOMES)}",
                    hint="`--folder` names its home folder, which has `models`, or the folder of models.",
                )
            return lm_studio.read(home, f"LM Studio, {home}")
    path = Path(source)
    config = _read_yaml(path)
    models, base = config.get("models"), path.resolve().parent
    if isinstance(config.get("model_list"), list):
        return litellm.read(config, f"LiteLLM, {path}", weights, _of_ollama(weights), _of_lm_studio(weights))
    if isinstance(models, Mapping):
        return llama_swap.read(config, base, f"llama-swap, {path}", weights)
    raise Failed(f"{path}: neither a configuration of llama-swap nor of LiteLLM", hint=_KINDS)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """Read a configuration file. Raises Failed with its line."""
    try:
        config = yaml.safe_load(text_files.read(path))
    except FileNotFoundError:
        raise Failed(f"there is no file {path}", hint=f"Other sources: `{OLLAMA}`, `{LM_STUDIO}`.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise Failed(f"{place}: is not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(config, Mapping):
        raise Failed(f"{path}: is no mapping", hint=_KINDS)
    return config


def _ollama_folder(weights: LocalWeights) -> Path | None:
    folders = (weights.environ.get("OLLAMA_MODELS") or "", *ollama.FOLDERS)
    return next((p for f in folders if f and (p := Path(f).expanduser()).is_dir()), None)


def _lm_studio_home(weights: LocalWeights) -> Path | None:
    return next((p for f in lm_studio.HOMES if (p := Path(f).expanduser()).is_dir()), None)


def _of_ollama(weights: LocalWeights) -> litellm.Local:
    store = _ollama_folder(weights)
    return lambda name: ollama.model(store, name, weights.environ) if store else None


def _of_lm_studio(weights: LocalWeights) -> litellm.Local:
    home = _lm_studio_home(weights)

    def find(name: str) -> Entry | None:
        if home is None:
            return None
        draft = lm_studio.read(home, "")
        return draft.entries.get(draft.aliases.get(name, name))

    return find


def _write_new(path: Path, text: str) -> None:
    """Write a file that does not exist yet. Raises Failed."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Failed(f"{path} exists, and is not changed", hint="Name another file, or leave `--output` out.") from None
    except OSError as error:
        raise Failed(f"{path}: cannot be written: {error.strerror}") from None
