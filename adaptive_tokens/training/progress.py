"""Progress bars are for people: none where they are not wanted, and none where a page runs as a test."""
import os
from collections.abc import Iterable

from tqdm.auto import tqdm

__all__ = ['progress_bar']


def progress_bar(
    items:Iterable, # What is gone through
    label:str,      # Words in front of the bar
    wanted:bool,    # Whether a bar shall be seen; with IN_TEST in the environment none is
    **options,      # Further arguments of tqdm
) -> tqdm:          # The same items, one by one
    "A progress bar that goes when it is done"
    return tqdm(items, desc=label, leave=False, disable=not wanted or 'IN_TEST' in os.environ, **options)
