"`python -m adaptive_tokens` is the command line."
import sys

from adaptive_tokens.cli.main import main

if __name__ == '__main__': sys.exit(main())
