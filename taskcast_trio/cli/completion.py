"""``taskcast-trio completion``: what a shell needs to complete commands, options and nodes."""

from __future__ import annotations

from typing import Final

import click

from taskcast_trio.cli.connect import output_options
from taskcast_trio.cli.output import Out

PROGRAM: Final = "taskcast-trio"
SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@output_options
def completion(shell: str, out: Out) -> None:
    """Print the completion script for SHELL.

    \b
      taskcast-trio completion bash >> ~/.bash_completion
      taskcast-trio completion zsh > ~/.zfunc/_taskcast-trio      # a folder of $fpath
      taskcast-trio completion fish > ~/.config/fish/completions/taskcast-trio.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    group = click.get_current_context().find_root().command
    script = kind(group, {}, PROGRAM, "_TASKCAST_TRIO_COMPLETE")
    # Not source(): for bash it runs a shell to judge its version.
    text = script.source_template % script.source_vars()
    out.json({"shell": shell, "script": text}) if out.as_json else out.say(text)
