"""The console command `cadyq`, with a sub-command for each program.

A program is imported when its sub-command runs, so the light core needs none of the extras.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, Protocol


class Main(Protocol):
    """The `main` of a command."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run with these arguments, by default those of `sys.argv`; return the exit status."""


class Command(NamedTuple):
    """A program.

    Attributes:
        module: dotted name of the module with its `main`.
        extra: extra of the package that installs the imports of the module.
        summary: line in `cadyq --help`.
    """

    module: str
    extra: str
    summary: str


COMMANDS = {
    "run": Command("analysis.run.command", "analysis", "measure schemes on datasets; write tables, plots and report"),
    "train": Command("cadyq.commands.train", "train", "train a network by a recipe"),
    "calibrate": Command("cadyq.commands.calibrate", "analysis", "calibrate a scheme on LR images and tune it"),
    "derive": Command("cadyq.commands.derive", "train", "choose the bits of a trained network by another scheme"),
    "upscale": Command("cadyq.commands.upscale", "analysis", "upscale photographs and report BitOPs and bits"),
    "export": Command("cadyq.commands.export", "deploy", "export a quantized network to ONNX for INT8 inference"),
    "check": Command("cadyq.testing.__main__", "analysis", "check that a scheme follows the rules of the benchmark"),
    "verify": Command("analysis.run.verification", "analysis", "check a run against its records, weights and images"),
    "compare": Command(
        "analysis.commands.compare", "analysis", "compare two runs cell by cell, with confidence intervals"
    ),
    "report": Command("analysis.commands.report", "analysis", "make tables, plots and report of a run again"),
    "sensitivity": Command(
        "analysis.sensitivity.__main__", "analysis", "measure the sensitivity of each patch and layer to its bits"
    ),
    "content": Command("analysis.content.__main__", "analysis", "measure how much content-dependent bits can gain"),
    "calibration": Command(
        "analysis.commands.calibration", "analysis", "print the loss and the effort of calibrated networks"
    ),
    "ship": Command("cadyq.commands.zoo", "train", "add trained networks to a zoo of your own"),
    "download": Command("cadyq.commands.download", "foreign", "download weights of other authors, checked by hash"),
    "cost": Command("analysis.commands.cost", "analysis", "print MACs and BitOPs of a network by layer"),
}


def usage() -> str:
    """The text of `cadyq --help`."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cadyq [--help] [--version] COMMAND ...",
            "",
            "A benchmark for quantized image super-resolution.",
            "",
            "commands:",
            *lines,
            "",
            "cadyq COMMAND --help lists the options of a command.",
        ]
    )


def main_of(name: str, called: str = "") -> Main:
    """The `main` of a command. It imports the module of the command when it is called.

    Args:
        name: key of `COMMANDS`.
        called: name of the command in its help; by default `python -m MODULE`.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        from cadyq.commands.cli import called_as, exit_status
        from cadyq.utils.extras import needs

        command, loaded = COMMANDS[name], list[Main]()

        def load() -> None:
            with needs(command.extra, called or name):
                loaded.append(import_module(command.module).main)

        with called_as(called):
            return exit_status(load) or loaded[0](argv)

    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        import cadyq

        print(f"cadyq {cadyq.__version__}")
        return 0
    if words[0] not in COMMANDS:
        from cadyq.utils.registry import closest

        known = f"{closest(words[0], COMMANDS)}: known are {', '.join(COMMANDS)}"
        print(f"error: unknown command {words[0]!r}{known}; see cadyq --help", file=sys.stderr)
        return 2
    return main_of(words[0], f"cadyq {words[0]}")(words[1:])


if __name__ == "__main__":
    sys.exit(main())
