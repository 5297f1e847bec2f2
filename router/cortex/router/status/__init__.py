"""The status page: what runs where, what is starting and for how long, and what is evicted next and why.

    fleet snapshot → `page.picture()` → frozen values (`model`) → templates → fragments → `live`

`overview` has the facts. `page` is pure and decides all content; templates only lay it out. The server sends times as
Unix seconds and the browser counts them down, so an unchanged page causes no traffic. `live` sends a fragment again
when its values change, at most once a second; one rendering serves all viewers.

No inline script and no inline style (`routes.POLICY`); all assets come from this package.
"""
