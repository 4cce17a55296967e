"""Tables and pictures in a single page that needs no network, so that it can be mailed.

Whatever comes from outside, names of folders and classes among it, is text: it passes through `html.escape`, and the
page's own policy forbids scripts besides.
"""
import base64
import html
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

__all__ = ['Picture', 'Table', 'as_figure', 'as_page', 'as_table', 'report']

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 76rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { line-height: 1.2; }
p, figcaption { max-width: 60rem; }
.wide { overflow-x: auto; }
.wide:focus-visible { outline: 3px solid Highlight; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; padding: 1rem 0 .5rem; font-weight: bold; }
th, td { padding: .3rem .6rem; border-top: 1px solid GrayText; text-align: right; white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; min-width: 4rem; }
:is(th, td):first-child { text-align: left; padding-left: 0; }
figure { margin: 2rem 0; }
figure img { display: block; max-width: max(100%, 34rem); height: auto; background: white; }
figcaption, .note { font-size: .9rem; margin-top: .5rem; }
"""


class Table(NamedTuple):
    "A table of a page"
    caption:str       # What the table shows
    cells:list[list]  # Rows of cells, the first row being the head
    note:str = ''     # Text below the table


class Picture(NamedTuple):
    "A picture of a page"
    file:str       # Name of its file, ending in .png
    figure:Figure  # The picture itself
    alt:str        # What is to be seen
    caption:str    # How to read it


def as_table(
    caption:str,      # What the table shows
    cells:list[list], # Rows of cells, the first row being the head
    note:str='',      # Text below the table
) -> str:             # HTML
    "A table that scrolls by itself where the screen is narrow"
    name, note = html.escape(caption), html.escape(note)
    head, *rows = ([html.escape(str(cell)) for cell in row] for row in cells)
    top = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = []
    for first, *others in rows:
        values = ''.join(f'<td>{cell}</td>' for cell in others)
        lines.append(f'<tr><th scope="row">{first}</th>{values}</tr>')
    body = '\n'.join(lines)
    return (f'<div class="wide" role="region" tabindex="0" aria-label="{name}"><table><caption>{name}</caption>\n'
            f'<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>\n<p class="note">{note}</p>')


def as_figure(
    png:bytes,            # Picture, as the content of a png file
    size:Iterable[float], # Width and height, inches
    alt:str,              # What is to be seen
    caption:str,          # How to read it
) -> str:                 # HTML
    "A picture inside of the page; its axes were drawn for white, so it stays on white in the dark"
    data, alt, caption = base64.b64encode(png).decode(), html.escape(alt), html.escape(caption)
    width, height = (round(96 * inches) for inches in size)
    return (f'<figure><div class="wide" role="region" tabindex="0" aria-label="{caption}">'
            f'<img width="{width}" height="{height}" alt="{alt}" src="data:image/png;base64,{data}"></div>'
            f'<figcaption>{caption}</figcaption></figure>')


def as_page(
    title:str,       # Title of the page
    lead:str,        # First paragraph
    parts:list[str], # HTML from `as_table` and `as_figure`
) -> str:            # HTML of a whole page
    "A page without scripts and without anything from elsewhere"
    head = (f'<meta charset="utf-8"><title>{html.escape(title)}</title>\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>')
    body = '\n'.join([f'<h1>{html.escape(title)}</h1>', f'<p>{html.escape(lead)}</p>', *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{body}</main></body></html>\n'


def report(
    folder:Path,                   # Folder to write to
    title:str,                     # Title of the page
    lead:str,                      # First paragraph
    tables:Iterable[Table]=(),     # Tables, in order
    pictures:Iterable[Picture]=(), # Pictures, behind the tables
    end:str='',                    # Last part of the page, HTML
):
    "Write each picture as a file, and index.html, which holds the tables and all the pictures itself"
    parts = [as_table(*table) for table in tables]
    for file, figure, alt, caption in pictures:
        figure.savefig(folder/file, dpi=150, facecolor='white')
        plt.close(figure)
        parts.append(as_figure((folder/file).read_bytes(), figure.get_size_inches(), alt, caption))
    text = as_page(title, lead, [*parts, end])
    (folder/'index.html').write_text(text, encoding='utf-8', errors='xmlcharrefreplace')
