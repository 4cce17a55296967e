"Names of points find places where they cover nothing."
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from adaptive_tokens.look.labels import PLACES, _points_of_lines, name_point, spread_names


@pytest.fixture
def axes():
    fig, ax = plt.subplots(figsize=(6, 4))
    ax.set(xlim=(0, 10), ylim=(0, 10))
    yield ax
    plt.close(fig)


def boxes(ax): return [Text.get_window_extent(name) for name in ax.texts]


def test_a_name_alone_keeps_the_first_place(axes):
    name_point(axes, 'alone', (5, 5), 'black')
    spread_names(axes.figure)
    name, = axes.texts
    assert name.get_position() == PLACES[0] and not name.arrow_patch.get_visible()


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 6), st.floats(1, 9), st.floats(2, 8))
def test_names_of_equal_points_do_not_cover_each_other_or_the_edge(n, x, y):
    fig, ax = plt.subplots(figsize=(6, 4))
    ax.set(xlim=(0, 10), ylim=(0, 10))
    for k in range(n): name_point(ax, f'name {k}', (x, y), 'black')
    spread_names(fig)
    plt.close(fig)
    assert not any(a.overlaps(b) for a, b in combinations(boxes(ax), 2))
    (left, bottom), (right, top) = ax.get_window_extent().get_points()
    assert all(left <= b.x0 and b.x1 <= right and bottom <= b.y0 and b.y1 <= top for b in boxes(ax))


def test_names_leave_markers_and_the_legend_free(axes):
    axes.plot([9], [9], 'o', label='a legend')
    axes.legend(loc='upper right')
    for at in ((8, 9), (8.6, 9.3)): name_point(axes, 'long name', at, 'black')
    spread_names(axes.figure)
    assert not any(b.overlaps(axes.get_legend().get_window_extent()) for b in boxes(axes))
    for x, y in axes.transData.transform([(8, 9), (8.6, 9.3)]): assert not any(b.contains(x, y) for b in boxes(axes))


def test_a_line_is_crossed_only_where_there_is_no_other_way(axes):
    axes.plot([0, 10], [5, 9.5])  # through the first place of the name, and not through the one below its point
    name_point(axes, 'name', (5, 6.9), 'black')
    spread_names(axes.figure)
    box, = boxes(axes)
    assert not any(box.contains(x, y) for x, y in _points_of_lines(axes))


def test_a_name_far_from_its_point_gets_a_line(axes):
    for k in range(6): name_point(axes, f'name {k}', (5, 5), 'black')
    spread_names(axes.figure)
    for name in axes.texts: assert name.arrow_patch.get_visible() == (abs(name.get_position()[1]) > 14)
    assert len({name.arrow_patch.get_visible() for name in axes.texts}) == 2


def test_points_stand_for_lines_and_error_bars(axes):
    axes.errorbar([2, 8], [2, 8], [1, 1], linestyle='--')
    axes.figure.draw_without_rendering()
    at = axes.transData.inverted().transform(_points_of_lines(axes))
    between = at[(at[:, 0] > 2.1) & (at[:, 0] < 7.9)]
    assert len(between) >= 19 and np.allclose(between[:, 0], between[:, 1])
    assert {round(y, 1) for x, y in at if round(x, 6) == 2} >= {1., 2., 3.}
