"""What is said about a wrong name or number: every message names the value and what would be right."""
import difflib
from collections.abc import Iterable

__all__ = ['check_counts', 'must_be', 'unknown_name']


def unknown_name(
    kind:str,   # What the name should be, such as 'split'
    name:str,   # Name that was given
    known:Iterable, # Names that exist
) -> ValueError:    # Error for the caller to raise
    "An error that offers the nearest names"
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, 3, .4) or known[:8]
    return ValueError(f"no {kind} {name!r}; nearest: {', '.join(close)}")


def must_be(
    name:str,  # Name of the argument
    value,     # Value that was given
    right:str, # What would be right, such as 'above 0'
) -> ValueError: # Error for the caller to raise
    "An error for a number out of its range"
    return ValueError(f'{name} is {value}; it must be {right}')


def check_counts(
    **counts, # Whole numbers by the name of their argument
):
    "Raise ValueError for a number of things that is not a whole number from 1"
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f'{name} is {value!r}; it is a whole number from 1')
