"""The dashboard against Grafana's own schema: its published types, and the TypeScript compiler.

Part of `just test-monitoring`; the first time it installs both from npm (26 MB). A key that Grafana does not know, one
that is missing and a word that is none of its own each fail.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboard import dashboard

CHECK = """\
import type { Dashboard, Panel, RowPanel } from "@grafana/schema";
import type { FieldConfig, Options } from
  "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// A JSON file has the words of an enumeration, not its members.
type Plain<T> = T extends string ? `${T}` : T extends number ? T
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
export const dashboard: Plain<Dashboard> = WHOLE;
type Chart = Omit<Panel<Options, FieldConfig>, "options"> & { options: Options };
export const charts: Plain<Chart>[] = CHARTS;
export const rows: Plain<RowPanel>[] = ROWS;
"""


@pytest.fixture(scope="module")
def grafana() -> Path:
    """A folder with Grafana's types and a compiler."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    manifest = Path(__file__).with_name("package.json")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cortex" / "test-monitoring"
    there = home / "package.json"
    if not there.exists() or there.read_bytes() != manifest.read_bytes():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(manifest, there)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error"]
        try:
            subprocess.run(npm, cwd=home, check=True)
        except subprocess.CalledProcessError:
            there.unlink()
            raise
    return home


def faults(grafana: Path, dashboard: dict[str, Any]) -> str:
    """Return what the compiler says against a dashboard."""
    rows = [p for p in dashboard["panels"] if p["type"] == "row"]
    charts = [p for p in dashboard["panels"] if p["type"] == "timeseries"]
    assert len(rows) + len(charts) == len(dashboard["panels"])
    text = CHECK
    for name, value in (("WHOLE", dashboard), ("CHARTS", charts), ("ROWS", rows)):
        text = text.replace(f"= {name};", f"= {json.dumps(value, indent=1)};")
    (grafana / "check.ts").write_text(text)
    flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--moduleResolution", "nodenext"]
    tsc = [str(grafana / "node_modules" / ".bin" / "tsc"), *flags, "check.ts"]
    done = subprocess.run(tsc, cwd=grafana, capture_output=True, text=True, check=False, timeout=120)
    assert not done.stderr
    return done.stdout


def test_the_dashboard_is_one_by_grafanas_own_schema(grafana: Path) -> None:
    assert faults(grafana, json.loads(dashboard())) == ""


@pytest.mark.parametrize("fault", ["unknown key", "missing key", "unknown word"])
def test_a_dashboard_with_a_fault_is_none(grafana: Path, fault: str) -> None:
    content = json.loads(dashboard())
    chart = next(p for p in content["panels"] if p["type"] == "timeseries")
    match fault:
        case "unknown key":
            content["titel"] = "cortex"
        case "missing key":
            del chart["options"]["tooltip"]
        case "unknown word":
            chart["options"]["legend"]["displayMode"] = "lists"

    assert "error TS" in faults(grafana, content)
