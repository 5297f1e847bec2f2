"""The status page: what runs where, what is loading and for how long still, what goes next and why.

    view of the record → `page.picture()` → frozen values (`model`) → templates → fragments → `live`

`page` is pure and decides everything that is shown; templates only lay it out. Nothing is shown that the record or
a router's own counters do not say. Times leave the server as Unix seconds: the browser counts them down, so a
page on which nothing happens sends nothing. `live` sends a fragment again when its values changed, at most once
a second, and one rendering serves all who look.

No inline script and no inline style (`routes.POLICY`); everything comes from this package.
"""
