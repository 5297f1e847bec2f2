"""Jinja filters that derive secrets as cortex itself does. Ansible comes with the checkout, and so has cortex."""

from collections.abc import Callable, Iterable

from cortex.platform.keys import host_file


def cortex_host_token(fleet_tokens: Iterable[str], host: str) -> str:
    """Return the text of a host's token file, for the lines of the fleet's."""
    return host_file(tuple(fleet_tokens), host)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return the filters by name."""
        return {"cortex_host_token": cortex_host_token}
