"""How does somebody who never opens a notebook get from images to a faster model?"""
import sys
import warnings

import torch

from .bench import bench
from .calibrate import calibrate
from .demo import demo
from .explore import explore
from .options import make_parser
from .output import say
from .train import train

__all__ = ['COMMANDS', 'main']

COMMANDS = {command.name: command for command in (demo, bench, calibrate, train, explore)}
# What input and machine can cause; anything else is a bug and keeps its traceback.
REFUSED = ValueError, OSError, ImportError, NotImplementedError, torch.OutOfMemoryError


def main(
    argv:list[str]|None=None, # Words of the command line; None: those of the process
) -> int:                     # Exit code: 0 done, 2 refused, 130 interrupted
    "Run a command; errors of the input become one line on stderr"
    args = make_parser(COMMANDS).parse_args(argv)
    if hasattr(sys.stdout, 'reconfigure'): sys.stdout.reconfigure(errors='replace')  # a table of ± for any terminal
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say('note', message)
        warnings.simplefilter('ignore', DeprecationWarning)  # of libraries among themselves: nothing a user can do
        try: COMMANDS[args.command].run(args)
        except KeyboardInterrupt: return say('interrupted', 'nothing half-written is left', 130)
        except REFUSED as error:
            if args.debug: raise
            return say('error', f'{error}{_remedy(error, args)}', 2)
    return 0


def _remedy(error, args):
    "What to do where the message cannot know it"
    if not isinstance(error, torch.OutOfMemoryError): return ''
    return '; try a smaller --batch-size' if hasattr(args, 'batch_size') else '; try a smaller --n'
