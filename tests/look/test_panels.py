"Panels are closed, in rows of six and without spare axes; pictures and numbers stand where they belong."
import numpy as np
import pytest
from drawn import rendered

from adaptive_tokens.look.panels import annotated_grid, new_figure, panels, show_images, ticks_up_to, whole_steps


@pytest.mark.parametrize('n, shape', [(1, (1, 1)), (6, (1, 6)), (7, (2, 6)), (13, (3, 6))])
def test_panels_stand_in_rows_of_six(n, shape):
    fig, axes = panels(n, title='$5')
    assert len(fig.axes) == len(axes) == n and axes[0].get_gridspec().get_geometry() == shape
    assert rendered(fig).get_suptitle() == r'\$5'


@pytest.mark.parametrize('columns, rows', [(None, 1), (2, 2)])
def test_images_are_shown_with_their_titles(columns, rows):
    fig = rendered(show_images(np.arange(36.).reshape(4, 3, 3), ['$a', 'b'], columns=columns, vmin=0))
    assert [ax.get_title() for ax in fig.axes] == [r'\$a', 'b', '', ''] and fig.axes[0].get_gridspec().nrows == rows
    assert fig.axes[3].images[0].get_array().tolist() == [[27, 28, 29], [30, 31, 32], [33, 34, 35]]
    assert all(ax.images[0].get_cmap().name == 'gray' and not len(ax.get_xticks()) for ax in fig.axes)


def test_numbers_are_white_on_dark_and_black_on_bright():
    fig, axes = new_figure(1, 1, (2, 2))
    annotated_grid(axes[0, 0], np.array([[0., 12.], [np.nan, 5.]]), whole_steps(12))
    written = [(text.get_text(), text.get_color()) for text in rendered(fig).axes[0].texts]
    assert written == [('0', 'white'), ('12', 'black'), ('5', 'white')]


def test_each_whole_number_has_a_colour_and_ticks_are_whole():
    assert len({int(whole_steps(12)(k)) for k in range(13)}) == 13
    assert ticks_up_to(12, 7).tolist() == [0, 2, 4, 6, 8, 10, 12] and ticks_up_to(2, 7).tolist() == [0, 1, 2]
