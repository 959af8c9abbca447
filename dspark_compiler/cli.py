"""The console scripts ``dspark-compile`` and ``dspark``. Each command lives in ``commands/``."""

import click

from dspark_compiler.commands.base import Group
from dspark_compiler.commands.bench import bench_command
from dspark_compiler.commands.compile import compile_command
from dspark_compiler.commands.doctor import doctor_command
from dspark_compiler.commands.eval import eval_command
from dspark_compiler.commands.generate import generate_command
from dspark_compiler.commands.heads import heads_group
from dspark_compiler.commands.inspect import inspect_command
from dspark_compiler.commands.kvzap import kvzap_group
from dspark_compiler.commands.tune import tune_command


@click.group("dspark", cls=Group)
@click.version_option(package_name="dspark-compile")
def main() -> None:
    """Run, measure and look at compiled language models."""


main.add_command(generate_command)
main.add_command(bench_command)
main.add_command(eval_command)
main.add_command(inspect_command)
main.add_command(heads_group)
main.add_command(kvzap_group)
main.add_command(tune_command)
main.add_command(doctor_command)

compile_main = compile_command
