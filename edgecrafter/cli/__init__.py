"""The command line: ``edgecrafter COMMAND [options]``."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence

HELP = ("-h", "--help", "help")
MEMORY = "try a smaller --batch or --imgsz, or --device cpu"


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; gives back the exit code: 0 done, 1 something about the input is wrong, 2 wrong usage.

    Errors that a user can cause are one line on stderr; ``--debug`` or ``EDGECRAFTER_DEBUG=1`` shows where they came
    from.
    """
    given = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in given or os.environ.get("EDGECRAFTER_DEBUG", "0") not in ("", "0")
    given = [word for word in given if word != "--debug"]
    from edgecrafter.cli.parsing import UsageError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = _run(given)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("edgecrafter: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print(f"edgecrafter: error: {_own_words(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except RuntimeError as error:
        if debug or not _is_memory(error):
            raise
        print(f"edgecrafter: error: not enough memory: {MEMORY} ({str(error).split('. ')[0]})", file=sys.stderr)
        return 1


def _own_words(error: Exception) -> str:
    """The message of an error, without the traceback that a process which reads pictures puts around it."""
    wrapped = re.match(r"Caught (\w+) in DataLoader worker process.*\n(?:\w+\.)*\1: (.*)", str(error), re.DOTALL)
    return wrapped[2].strip() if wrapped else str(error)


def _is_memory(error: RuntimeError) -> bool:
    """Whether a device had too little memory; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"edgecrafter: warning: {message}", file=sys.stderr)


def _run(words: list[str]) -> int:
    import difflib

    from edgecrafter import __version__
    from edgecrafter.cli import commands, parsing

    if not words or words[0] in HELP:
        print(commands.overview())
        return 0
    if words[0] in ("--version", "version"):
        print(f"edgecrafter {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in commands.COMMANDS:
        near = difflib.get_close_matches(name, commands.COMMANDS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(commands.COMMANDS)}."
        raise parsing.UsageError(f"unknown command {name!r}. {hint}")
    command = commands.COMMANDS[name]
    options = command.options()
    if any(word in HELP[:2] for word in rest):
        print(parsing.help_text(options, command.usage(name), command.examples))
        return 0
    command.run(parsing.parse(options, rest, command.positionals))
    return 0
