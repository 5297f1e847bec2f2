"""Replaces the fleet's token while everything runs.

A token file may have several tokens: the first is used, all are accepted, and routers and agents reload it. (1) All
machines accept the new token. (2) All machines use it, and still accept the old one, because the keys of workers
started under it are derived from it. (3) When no such worker is left, the old token is removed. The vault always has
the tokens that machines should have, so an interrupted rotation continues where it stopped.
"""

import time
from collections.abc import Callable
from pathlib import Path

from deploy.vault import Vault, new_secret, value, with_values

TOKEN, NEXT, FORMER = "cortex_fleet_token", "cortex_fleet_token_next", "cortex_fleet_token_former"
SINCE = "cortex_fleet_token_since"
"""The Unix time since when every machine uses the token."""
RELOAD_S = 5
"""Time limit for machines to reload a changed file, and more than the difference of their clocks."""
Play = Callable[..., int]


def rotate(inventory: Path, play: Play) -> int:
    """Make all machines use a new token and accept the previous one. Raises VaultClosed."""
    vault = Vault(inventory)
    text = vault.read()
    if value(text, FORMER) and not value(text, NEXT):
        print("the previous token is still accepted: run `just rotate-token INVENTORY --finish` before another change")
    else:
        text = with_values(text, {NEXT: value(text, NEXT) or new_secret()})
        vault.write(text)
        if code := play("tokens.yml"):  # (1)
            return code
        text = swap_tokens(text)
        vault.write(text)
    if code := play("tokens.yml"):  # (2)
        return code
    if not value(text, SINCE):
        vault.write(with_values(text, {SINCE: str(round(time.time()) + RELOAD_S)}))
    print("the new token is in use; workers started under the old one still run. `… --finish` removes the old one")
    return 0


def finish(inventory: Path, play: Play) -> int:
    """Make all machines reject the old token, if no worker started under it runs. Raises VaultClosed."""
    vault = Vault(inventory)
    text = vault.read()
    if value(text, FORMER):
        if code := play("tokens.yml", "--tags", "old"):
            return code
        vault.write(with_values(text, {FORMER: "", SINCE: ""}))
    elif value(text, NEXT):
        print("rotate-token: not every machine uses the new token yet: run `just rotate-token INVENTORY` again")
        return 1
    if code := play("tokens.yml"):  # (3), also where an earlier run was interrupted in it
        print("rotate-token: some machines still accept the old token: run the same again once they answer")
        return code
    print("no machine accepts the old token")
    return 0


def swap_tokens(text: str) -> str:
    """Return a vault's text with the next token as the current one, and the current one as the former one."""
    return with_values(text, {TOKEN: value(text, NEXT), FORMER: value(text, TOKEN), NEXT: ""})
