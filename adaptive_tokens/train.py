"""`accelerate launch -m adaptive_tokens.train OPTIONS`: the command `adaptive-tokens train` on many devices."""
import sys


def main(
    argv:list[str]|None=None, # Words of the command line; None: those of the process
) -> int:                     # Exit status
    "`adaptive-tokens train`, for `accelerate launch -m adaptive_tokens.train`"
    from adaptive_tokens.cli.main import main as command_line
    return command_line(['train', *(sys.argv[1:] if argv is None else argv)])


if __name__ == '__main__': sys.exit(main())
