"""`python -m pipelines.with_args PROGRAM WORD …`: run a program with the words of the variable ARGS after its own.

ARGS is written as for a shell, with quotes around what has blanks in it, but no shell reads it: nothing in it is run.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence


def main(command: Sequence[str]) -> int:
    """Become the program; returns 2 where a quote in ARGS is not closed or the program cannot be started."""
    given = os.environ.pop("ARGS", "")  # which is not the program's own, nor that of a make it may start
    try:
        words = [*command, *shlex.split(given)]
        os.execvp(words[0], words)
    except ValueError as error:
        print(f"error: ARGS: {str(error).lower()}: {given}", file=sys.stderr)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
