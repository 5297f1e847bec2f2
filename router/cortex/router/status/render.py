"""Values into HTML. Templates escape by themselves, and an unknown name in one is an error."""

import time
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from msgspec import Struct

from cortex.router.status import assets, format
from cortex.router.status.charts import chart
from cortex.router.status.model import Picture


class Fragment(Struct, frozen=True):
    """A piece of the page that is sent by itself: `value`, laid out by `template`."""

    id: str
    template: str
    value: object
    into: str = ""
    """The element it belongs into, for pieces that come and go."""
    order: str = ""


def fragments(shown: Picture) -> list[Fragment]:
    """Return the page in pieces."""
    return [
        Fragment("verdict", "verdict.html", shown.verdict),
        Fragment("figures", "figures.html", (shown.figures, shown.flow)),
        Fragment("starts", "starts.html", shown.starts),
        Fragment("departures", "departures.html", shown.departures),
        Fragment("traffic", "traffic.html", shown.flow),
        Fragment("decisions", "decisions.html", shown.decisions),
        Fragment("troubles", "troubles.html", shown.troubles),
        Fragment("jobs", "jobs.html", shown.jobs),
        *(Fragment(h.key, "host.html", h, "hosts", h.order) for h in shown.hosts),
        *(Fragment(r.key, "row.html", r, "functions", r.order) for r in shown.rows),
    ]


def fragment(piece: Fragment, now: float) -> str:
    """Return a fragment's HTML."""
    return render(piece.template, now, it=piece.value, id=piece.id, order=piece.order)


def page(shown: Picture, *, may_act: bool, logged_in: bool = False) -> str:
    """Return the whole page."""
    pieces = fragments(shown)
    inner = {p.id: Markup(fragment(p, shown.now)) for p in pieces}  # noqa: S704  (our own templates' output)
    lists = {
        name: Markup("".join(inner[p.id] for p in pieces if p.into == name))  # noqa: S704
        for name in ("hosts", "functions")
    }
    names = [n for r in sorted(shown.rows, key=lambda r: r.id) for n in (r.id, *r.aliases)]
    return render("page.html", shown.now, parts=inner | lists, names=names, may_act=may_act, logged_in=logged_in)


def render(template: str, now: float | None = None, **values: Any) -> str:
    """Return a template's HTML with these values in it."""
    at = time.time() if now is None else now
    return _TEMPLATES.get_template(template).render(now=at, **values)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _per_cent(share: float) -> str:
    """A length in SVG: a number and a sign, never a style."""
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
