"""Changing the fleet's token while everything runs.

A token file holds several: the first is used, all are accepted, and routers and agents follow it. So (1) the new one
is accepted everywhere, (2) it is used everywhere, and the old one still accepted, because workers that were started
under it have keys that come from it; (3) when none of those is left, the old one goes. The vault says at every moment
what machines are to be told, so what was interrupted is begun again where it was.
"""

import time
from collections.abc import Callable
from pathlib import Path

from deploy.vault import Vault, changed, made, value

TOKEN, NEXT, FORMER = "cortex_fleet_token", "cortex_fleet_token_next", "cortex_fleet_token_former"
SINCE = "cortex_fleet_token_since"
"""When every machine used the token, Unix time."""
FOLLOWED_S = 5
"""Within so long machines take up a file that was changed, and their clocks differ by less."""
Play = Callable[..., int]


def rotate(inventory: Path, play: Play) -> int:
    """Have a new token used everywhere, and the one before accepted. Raises VaultClosed."""
    vault = Vault(inventory)
    text = vault.read()
    if value(text, FORMER) and not value(text, NEXT):
        print("the token before is still accepted: before another change, `just rotate-token INVENTORY --finish`")
    else:
        text = changed(text, {NEXT: value(text, NEXT) or made()})
        vault.write(text)
        if code := play("tokens.yml"):  # (1)
            return code
        text = swapped(text)
        vault.write(text)
    if code := play("tokens.yml"):  # (2)
        return code
    if not value(text, SINCE):
        vault.write(changed(text, {SINCE: str(round(time.time()) + FOLLOWED_S)}))
    print("the new token is used; workers that were started under the old one go on. `… --finish` forgets it")
    return 0


def finish(inventory: Path, play: Play) -> int:
    """Have the old token accepted no more, if nothing runs that was started under it. Raises VaultClosed."""
    vault = Vault(inventory)
    text = vault.read()
    if not value(text, FORMER):
        print("no earlier token is accepted")
        return 0
    if code := play("tokens.yml", "--tags", "old"):
        return code
    vault.write(changed(text, {FORMER: "", SINCE: ""}))
    return play("tokens.yml")  # (3)


def swapped(text: str) -> str:
    """Return a vault's text with the next token in use, and the one in use as the one before."""
    return changed(text, {TOKEN: value(text, NEXT), FORMER: value(text, TOKEN), NEXT: ""})
