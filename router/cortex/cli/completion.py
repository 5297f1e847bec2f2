"""`cortex completion`: the shell script that completes commands, options, functions and hosts."""

import rich_click as click
from click.shell_completion import get_completion_class

INSTALL = {
    "bash": "cortex completion bash > ~/.local/share/bash-completion/completions/cortex",
    "zsh": "cortex completion zsh > ~/.zfunc/_cortex  (with ~/.zfunc in fpath)",
    "fish": "cortex completion fish > ~/.config/fish/completions/cortex.fish",
}


@click.command(epilog="  ·  ".join(INSTALL.values()))
@click.argument("shell", type=click.Choice(list(INSTALL)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell, which also completes functions and hosts."""
    generator = get_completion_class(shell)
    assert generator is not None
    click.echo(generator(ctx.find_root().command, {}, "cortex", "_CORTEX_COMPLETE").source())
