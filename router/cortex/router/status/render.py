"""Renders values as HTML. Templates escape by default, and an undefined name is an error."""

import time
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from msgspec import Struct

from cortex.router.status import assets, format
from cortex.router.status.charts import chart
from cortex.router.status.model import Picture

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every page."""


class Fragment(Struct, frozen=True):
    """A part of the page that is sent separately: `value`, rendered by `template`."""

    id: str
    template: str
    value: object
    into: str = ""
    """The parent element, for items of a list."""
    order: str = ""


def fragments(picture: Picture) -> list[Fragment]:
    """Return the page as fragments."""
    return [
        Fragment("verdict", "verdict.html", picture.verdict),
        Fragment("figures", "figures.html", (picture.figures, picture.flow)),
        Fragment("starts", "starts.html", picture.starts),
        Fragment("departures", "departures.html", picture.departures),
        Fragment("traffic", "traffic.html", picture.flow),
        Fragment("decisions", "decisions.html", picture.decisions),
        Fragment("troubles", "troubles.html", picture.troubles),
        Fragment("batches", "jobs.html", picture.batches),
        Fragment("jobs", "jobs.html", picture.jobs),
        *(Fragment(h.key, "host.html", h, "hosts", h.order) for h in picture.hosts),
        *(Fragment(r.key, "row.html", r, "functions", r.order) for r in picture.rows),
    ]


def fragment(piece: Fragment, now: float) -> str:
    """Return a fragment's HTML."""
    return render(piece.template, now, it=piece.value, id=piece.id, order=piece.order)


def page(picture: Picture, *, may_act: bool, logged_in: bool = False) -> str:
    """Return the whole page."""
    pieces = fragments(picture)
    inner = {p.id: Markup(fragment(p, picture.now)) for p in pieces}  # noqa: S704  (our own templates' output)
    lists = {
        name: Markup("".join(inner[p.id] for p in pieces if p.into == name))  # noqa: S704 (as above)
        for name in ("hosts", "functions")
    }
    names = [n for r in sorted(picture.rows, key=lambda r: r.id) for n in (r.id, *r.aliases)]
    return render("page.html", picture.now, parts=inner | lists, names=names, may_act=may_act, logged_in=logged_in)


def render(template: str, now: float | None = None, **values: Any) -> str:
    """Render a template with these values."""
    at = time.time() if now is None else now
    return _TEMPLATES.get_template(template).render(now=at, **values)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _per_cent(share: float) -> str:
    """Return a length for an SVG attribute."""
    return f"{100 * share:.2f}%"


_TEMPLATES = Environment(
    loader=PackageLoader("cortex.router.status"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_TEMPLATES.filters.update(
    mib=format.mib, gib=format.gib, span=format.span, clock=format.clock, ago=format.ago, millis=format.millis,
    rate=format.rate, iso=_iso, length_of=_per_cent,
)  # fmt: skip
_TEMPLATES.filters["count"] = lambda n: f"{n:,}".replace(",", "\u202f")
_TEMPLATES.globals.update(asset=assets.url, chart=chart, some=format.some)
