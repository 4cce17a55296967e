"""Figures of a benchmark as text: a table to read, and comma-separated values to calculate with."""
import csv
import io

__all__ = ['footnote', 'three_digits']


def three_digits(
    x:float, # Figure to show
) -> str:    # Decimal number without exponent
    "A number with about three digits, as a table wants it"
    digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2 if abs(x) >= 1 else 3
    return f'{x:.{digits}f}'


def _with_quartiles(row, key):
    "A median with its quartiles in brackets"
    low, high = row[f'{key}_iqr']
    return f'{three_digits(row[key])} [{three_digits(low)}, {three_digits(high)}]'


def _with_interval(difference):
    "A difference of accuracies in points with its 95 % interval; empty where there is none"
    if not difference: return ''
    low, high = difference['interval']
    return f"{difference['mean']:+.1f} [{low:+.1f}, {high:+.1f}]"


# Columns of the table: head, and what stands under it for a row; files written earlier lack some figures.
COLUMNS = {
    'model': lambda r: r['name'],
    'top-1 %': lambda r: '' if r['top1'] is None else f"{r['top1']:.1f}",
    'over dense, points': lambda r: _with_interval(r.get('over_dense')),
    'GMACs': lambda r: f"{three_digits(r['gmacs'])} ± {r['gmacs_std']:.2g}",
    'of dense %': lambda r: f"{100 * r['macs_share']:.1f}",
    'images/s': lambda r: _with_quartiles(r, 'images_per_s'),
    'speed-up': lambda r: _with_quartiles(r, 'speedup'),
    'peak MB': lambda r: three_digits(r['memory_mb']) if r.get('memory_mb') else '',
    'realised': lambda r: f"{r['realised']:.2f}",
    'time saved / MACs saved': lambda r: '' if r['saved_time_share'] is None else f"{r['saved_time_share']:.2f}",
    'ms, one image': lambda r: _with_quartiles(r, 'latency_ms'),
    'speed-up, one image': lambda r: _with_quartiles(r, 'latency_speedup'),
    'form': lambda r: r.get('execution') or '',
}

# Words of the footnote, and the entries of `meta` that follow them.
_CIRCUMSTANCES = dict(batch='batch_size', images='n', repeats='repeats', device='device', gpu='gpu', cpu='cpu',
                      threads='threads', dtype='dtype', torch='torch', timm='timm', commit='commit', date='date')


def footnote(
    meta:dict, # Circumstances of a Benchmark
) -> str:      # Sentence without a line break
    "The circumstances of a measurement in one line"
    entries = [f'{word} {meta[key]}' for word, key in _CIRCUMSTANCES.items() if meta.get(key) is not None]
    if meta.get('native'): entries.append('loops in C++')
    return f"Medians [quartiles]; GMACs: mean ± deviation over images; {', '.join(entries)}."


def table_cells(rows):
    "Head and rows of the table as text; a column in which no row has a value is left out"
    columns = [[head, *map(text_of, rows)] for head, text_of in COLUMNS.items()]
    return [list(line) for line in zip(*(column for column in columns if any(column[1:])))]


def as_text(bench):
    "The table of a Benchmark in plain text"
    lines = bench.cells()
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = ['  '.join(v.ljust(w) for v, w in zip(line, widths)).rstrip() for line in lines]
    return '\n'.join([*aligned, footnote(bench.meta)])


def as_markdown(bench):
    "The table of a Benchmark in Markdown"
    head, *rows = ([v.replace('|', r'\|') for v in line] for line in bench.cells())
    lines = [head, ['---', *['--:'] * (len(head) - 1)], *rows]
    return '\n'.join(f"| {' | '.join(line)} |" for line in lines) + f'\n\n{footnote(bench.meta)}'


def _flat(row):
    "A row with one number per entry: a pair of quartiles becomes two entries, a difference of accuracies four"
    flat = {}
    for key, value in row.items():
        if key.endswith('_iqr'):
            flat[f'{key[:-4]}_low'], flat[f'{key[:-4]}_high'] = value
        elif key == 'over_dense':
            low, high = value['interval'] if value else (None, None)
            flat |= {key: value and value['mean'], f'{key}_error': value and value['error'],
                     f'{key}_low': low, f'{key}_high': high}
        else: flat[key] = value
    return flat


def as_csv(rows):
    "The rows as comma-separated values, unrounded, with a head of all entries"
    flat, text = [_flat(row) for row in rows], io.StringIO()
    heads = list(dict.fromkeys(key for row in flat for key in row))
    writer = csv.DictWriter(text, heads, lineterminator='\n')
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
