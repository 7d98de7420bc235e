"""`optimum-cli export visreflect`: our export under Optimum's command line.

Installed into Optimum's namespace for commands, `optimum/commands/register/`; everything heavy is imported when run.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import ClassVar

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class VisReflectExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum is untyped
    """Export a VisReflect or Qwen2.5-VL checkpoint to a ReflectRT bundle."""

    COMMAND: ClassVar[CommandInfo] = CommandInfo(
        name="visreflect", help="Export a VisReflect or Qwen2.5-VL checkpoint to a ReflectRT bundle."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """The options of `reflectrt export`."""
        from reflectrt.commands.export import add_arguments

        add_arguments(parser)

    def run(self) -> None:
        """Export; errors end the process as they do in `reflectrt export`."""
        from reflectrt.cli import run_guarded
        from reflectrt.commands import export

        raise SystemExit(run_guarded(lambda: export.run(self.args)))


REGISTER_COMMANDS = [(VisReflectExportCommand, ExportCommand)]
