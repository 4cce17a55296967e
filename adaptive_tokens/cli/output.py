"""What does a command leave behind? Results that are whole or absent, and one line for what went wrong."""
import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from ..look.page import Picture, Table, report
from ..measure.result import Benchmark
from ..measure.table import footnote
from ..models.files import staged

__all__ = ['check_file', 'check_folder', 'is_first_process', 'print_once', 'report_benchmark', 'results', 'say',
           'unless_empty']


def check_folder(
    out:str|os.PathLike, # Folder to be made, or to be written to
) -> Path:               # The same folder
    "Raise ValueError if a file is in the way"
    whole = Path(out).absolute()
    for place in (whole, *whole.parents):
        if place.is_file(): raise ValueError(f'{place} is a file: name a folder for --out')
    return Path(out)


def check_file(
    out:str|os.PathLike, # File to be written
) -> Path:               # The same file
    "Raise ValueError if a folder is in its place, or a file in the place of its folder"
    out = Path(out)
    if out.is_dir(): raise ValueError(f'{out} is a folder: name a file for --out, such as {out/"explorer.html"}')
    check_folder(out.absolute().parent)
    return out


@contextlib.contextmanager
def results(
    out:str|None, # Folder for the results; None: none are wanted
):                # Context that yields a folder to write to, or None
    "What the block writes appears in `out` if the block ends well, else nothing"
    if not out:
        yield None
        return
    with staged(check_folder(out)) as folder: yield folder


@contextlib.contextmanager
def unless_empty(
    out:Path, # Folder that the block may make
):            # Context of the block
    "Remove the folder again if the block fails before it has put anything there"
    new = not out.exists()
    try: yield
    except BaseException:
        if new and out.is_dir() and not any(out.iterdir()): out.rmdir()
        raise


def is_first_process(
) -> bool: # Whether this process is the first, or the only one
    "One of several processes speaks and writes for all"
    return os.environ.get('RANK', '0') == '0'


def print_once(
    text, # Text of any number of lines, or what has one
):
    "Print, in the first of several processes; go on in silence if nobody reads any more"
    if not is_first_process(): return
    try: print(text, flush=True)
    except BrokenPipeError: os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(
    kind:str,   # Kind of message: 'error', 'note' or 'interrupted'
    message,    # Message of any number of lines
    code:int=0, # Exit code
) -> int:       # The same code
    "Say something on stderr, in one line"
    print(f"adaptive-tokens: {kind}: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def report_benchmark(
    folder:Path,                   # Folder to write to
    title:str,                     # Title of the page
    lead:str,                      # First paragraph of the page
    bench:Benchmark,               # Benchmark to save and to show, as first table and first picture
    tables:Iterable[Table]=(),     # Further tables
    pictures:Iterable[Picture]=(), # Further pictures
    end:str='',                    # Last part of the page, HTML
):
    "Write benchmark.json, the same as csv, each figure as a picture, and index.html that holds all of it"
    bench.save(folder/'benchmark.json')
    (folder/'benchmark.csv').write_text(bench.csv(), encoding='utf-8')
    table = Table('Accuracy, cost and speed', bench.cells(), footnote(bench.meta))
    against = 'accuracy' if all(row['top1'] is not None for row in bench.rows) else 'speed-up'
    alt = (f'Two scatter plots, {against} against GMACs and against images per second, '
           'with a point for each row of the first table.')
    caption = f'{against.capitalize()} against what is counted and what is felt.'
    picture = Picture('benchmark.png', bench.plot(), alt, caption)
    report(folder, title, lead, [table, *tables], [picture, *pictures], end)
