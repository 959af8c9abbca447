"""The console scripts ``dspark-compile`` and ``dspark``. Each command lives in ``commands/``."""

import click

from dspark_compiler.commands.base import Group
from dspark_compiler.commands.compile import compile_command
from dspark_compiler.commands.generate import generate_command
from dspark_compiler.commands.inspect import inspect_command


@click.group("dspark", cls=Group)
@click.version_option(package_name="dspark-compile")
def main() -> None:
    """Run, measure and look at compiled language models."""


main.add_command(generate_command)
main.add_command(inspect_command)

compile_main = compile_command
