"""The command `babelscope`: from what was typed to a call of the library, to text or JSON.

Exit codes: 0; 1 for an error that Babelscope explains; 2 for a command that can't be understood; 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from babelscope.cli.commands import run
from babelscope.cli.messages import as_json, log_on_stderr, say
from babelscope.cli.parser import build_parser, parse
from babelscope.errors import BabelscopeError
from babelscope.progress import shown, task, usual_view
from babelscope.show.terminal import Screen
from babelscope.stages.contract import STAGES

__all__ = ["build_parser", "main"]

LONG = ("detect", "tune", "ablate", "steer", "export", "evaluate", "study", "demo")
"""Commands that say at once that they have begun, beside those that run one stage."""
_RESUMABLE = ("detect", "tune", "evaluate", "study", "demo")
"""The same command goes on where it stopped, if it writes a run folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the words after `babelscope`; None: those of this process.

    Returns:
        The exit code. A command that can't be understood raises SystemExit(2), as argparse does.
    """
    args = parse(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: threads that spin slow shared cores down
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of other libraries would write through the view
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character gets its number, not a crash
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with (
            log_on_stderr(args.command),
            shown(usual_view()),
            task(args.command) if args.command in LONG or args.command in STAGES else nullcontext(),
        ):
            answer = run(args)
        if os.environ.get("RANK", "0") != "0":  # of torchrun or accelerate launch: the first process speaks for all
            return 0
        print(as_json(answer.content) if args.json else "\n".join(answer.draw(Screen.of(sys.stdout))))
        sys.stdout.flush()
    except BrokenPipeError:  # babelscope show ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (BabelscopeError, OSError) as error:
        if args.debug or os.environ.get("BABELSCOPE_DEBUG") == "1":
            traceback.print_exc()
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        resumable = args.command in _RESUMABLE or args.command in STAGES
        resumes = resumable and args.out is not None and not getattr(args, "dry_run", False)
        say(f"interrupted; the same command goes on in {args.out}" if resumes else "interrupted; type it again")
        return 130
    return 0
