"""How does the explorer appear without Jupyter: as a page, in a frame, as text?"""
import html
import json
from importlib.resources import files
from pathlib import Path

from .encoding import text_as_bits

__all__ = ['as_frame', 'as_page', 'as_text']

STATIC = Path(str(files('adaptive_tokens')/'static'))
SCRIPT, STYLE = ((STATIC/name).read_text(encoding='utf-8') for name in ('explorer.js', 'explorer.css'))
START = ('mount(document.querySelector("main"), '
         'JSON.parse(document.querySelector("[type=\'application/json\']").textContent)); fit();')
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def as_page(
    values:dict, # Values of the explorer's traits, fit for json
) -> str:        # HTML of a whole page
    "A page with data, script and style inside, and without anything from elsewhere; raises ValueError for NaN"
    state = json.dumps(values, allow_nan=False).replace('<', '\\u003c')
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Token explorer</title>\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<style>:root {{ color-scheme: light dark; }} body {{ margin: 0; }}\n{STYLE}</style></head>\n'
            f'<body><main></main>\n<script type="application/json">{state}</script>\n'
            f'<script type="module">{SCRIPT}\n{START}</script></body></html>\n')


def as_frame(
    page:str, # Page from `as_page`
) -> str:     # HTML
    "A page inside another page, which it cannot disturb"
    return (f'<iframe title="Token explorer" srcdoc="{html.escape(page)}" loading="lazy" '
            'style="width: 100%; height: 60rem; border: 0"></iframe>')


def as_text(
    values:dict, # Values of the explorer's traits
) -> str:        # Lines of a table
    "What the explorer shows of its image: answers, costs, and the patches left in each block"
    data, i = values['data'], values['image']
    lines = [['model', 'says', 'GMACs', 'of dense', 'patches in each block']]
    lines += [_line(run, data, i) for run in values['runs']]
    wide = [max(map(len, column)) for column in zip(*lines)]
    table = ['  '.join(cell.ljust(n) for cell, n in zip(line, wide)).rstrip() for line in lines]
    return '\n'.join([_headline(data, i), *table])


def _headline(data, i):
    "Image, label, pixels and patches"
    rows, columns = data['grid']
    size = 'x'.join(map(str, data['size']))
    label = f", of class {data['labels'][i]}" if data['labels'] else ''
    return f"Token explorer: image {i} of {len(data['pictures'])}{label}, {size} pixels, {rows}x{columns} patches"


def _line(run, data, i):
    "Cells of the table for one model"
    rows, columns = data['grid']
    active = text_as_bits(run['active'], (len(data['pictures']), data['blocks'], rows * columns))
    guess = f"{run['guess'][i]} ({run['probability'][i]:.0%})"
    gmacs, share = f"{run['macs'][i] / 1e9:#.3g}", f"{run['macs'][i] / run['dense']:.0%}"
    return [run['name'], guess, gmacs, share, ' '.join(map(str, active[i].sum(1)))]
