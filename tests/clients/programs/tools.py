"""The tools that the SDK programs offer, and what they do."""

import base64
import json
import subprocess
from pathlib import Path

SCHEMAS = {
    "run": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    "look": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}


def used(name, arguments):
    """Return a tool's text and, in base64, its image."""
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    if name == "look":
        return "here it is", base64.b64encode(Path(value["path"]).read_bytes()).decode()
    done = subprocess.run(value["command"], shell=True, capture_output=True, text=True, check=False)
    return done.stdout, None
