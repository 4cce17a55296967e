"Methods look different, names stay what they are, error bars are those of the rows."
import matplotlib.pyplot as plt
import pytest

from adaptive_tokens.look.labels import PLACES
from adaptive_tokens.look.style import OTHER_METHOD, elide_left, plain_text, scatter, style_of
from adaptive_tokens.models.method import known_methods


def row(name, method, gmacs, top1=None, n=100, speedup=1.):
    return dict(name=name, method=method, gmacs=gmacs, gmacs_std=.1, top1=top1, n=n, speedup=speedup,
                speedup_iqr=[speedup - .1, speedup + .2])


def test_methods_differ_in_colour_and_marker():
    styles = {name: style_of(name) for name in ('dense', *known_methods())}
    own = {name: style for name, style in styles.items() if style != OTHER_METHOD}
    assert own.keys() == {'dense', 'as-vit', 'as-vit:merge', 'as-vit:fuse', 'a-vit', 'adavit', 'fixed-rate', 'tome',
                          'evit', 'dynamicvit'}
    colours, markers = zip(*own.values())
    assert len({*colours}) == len({*markers}) == len(own) and '#666666' not in colours and 'P' not in markers


@pytest.mark.parametrize('name', ['mine', 'as-vit:mine', 'lowest', 'random'])  # 'lowest' subclasses 'fixed-rate'
def test_a_method_of_ones_own_is_grey(name):
    assert style_of(name) == ('#666666', 'P')


@pytest.mark.parametrize('name', ['', 'short', 'x' * 28, 'runs/' * 20])
def test_the_end_of_a_long_name_stays(name):
    shown = elide_left(name)
    assert len(shown) <= 28 and name.endswith(shown.removeprefix('…')) and (shown == name) == (len(name) <= 28)


def test_points_of_one_method_are_joined_and_each_has_its_name():
    fig, ax = plt.subplots()
    rows = [row('b', 'tome', 2., 80.), row('$a', 'tome', 1., 50.), row('c' * 40, 'mine', 3., 90.)]
    scatter(ax, rows, 'gmacs', 'top1')
    plt.close(fig)
    lines = {line.get_color(): line for line in ax.lines if line.get_marker() in ('X', 'P')}
    assert lines[style_of('tome')[0]].get_xdata().tolist() == [1, 2] and lines['#666666'].get_ydata().tolist() == [90]
    assert [text.get_text() for text in ax.texts] == [plain_text('c' * 40)[-27:].rjust(28, '…'), r'\$a', 'b']
    assert all(text.get_position() == PLACES[0] for text in ax.texts)


@pytest.mark.parametrize('y, low, high', [('top1', 50 - 5, 50 + 5), ('speedup', 1.9, 2.2)])  # (50 * 50 / 100)**.5 = 5
def test_error_bars_are_standard_error_and_quartiles(y, low, high):
    fig, ax = plt.subplots()
    scatter(ax, [row('a', 'tome', 1., 50., speedup=2.)], 'gmacs', y)
    plt.close(fig)
    across, along = (bars.get_segments()[0].tolist() for bars in ax.collections)
    assert [x for x, _ in across] == pytest.approx([.9, 1.1]) and [v for _, v in along] == pytest.approx([low, high])
