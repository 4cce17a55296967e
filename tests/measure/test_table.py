"Figures as text, with numbers by hand."
import subprocess
import sys

import pytest

from adaptive_tokens.measure.table import as_csv, footnote, three_digits


@pytest.mark.parametrize('x, text', [
    (1234.5, '1234'), (99.96, '100.0'), (12.34, '12.3'), (1.234, '1.23'), (.0123, '0.012'),
    (-12.34, '-12.3'), (0, '0.000')])
def test_three_digits(x, text): assert three_digits(x) == text


def test_the_footnote_leaves_out_what_is_not_known():
    assert footnote(dict(batch_size=2, gpu=None, native=True, more=1)).endswith('over images; batch 2, loops in C++.')


def test_pairs_and_differences_become_columns():
    difference = dict(mean=1., error=.5, interval=[0., 2.])
    rows = [dict(name='a, b', speedup_iqr=[1, 2], over_dense=None),
            dict(name='c', speedup_iqr=[3, 4], over_dense=difference)]
    assert as_csv(rows).splitlines() == [
        'name,speedup_low,speedup_high,over_dense,over_dense_error,over_dense_low,over_dense_high',
        '"a, b",1,2,,,,', 'c,3,4,1.0,0.5,0.0,2.0']


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, adaptive_tokens.measure.result as _; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == 'False'
