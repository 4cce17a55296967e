"Figures are judged by what is in them: panels, numbers, labels, segments; the eye judges the rest in the notebook."
import numpy as np
import pytest
import torch
from drawn import adaptive, kept, rendered, small, trace_of
from matplotlib.collections import LineCollection

from adaptive_tokens.look.figures import (depth_distribution, depth_map, gallery, gate_usage, stages_of, token_counts,
    token_stages, tokens_per_block)
from adaptive_tokens.look.patches import edges, patch_grid, picture
from adaptive_tokens.look.style import plain_text
from adaptive_tokens.models.model import adapt, calibrate


def test_one_stage_per_change():
    assert stages_of(torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0]]).bool()) == [(1, 2), (3, 3), (4, 4)]
    assert stages_of(torch.ones(5, 3, dtype=torch.bool)) == [(1, 5)]
    back = torch.tensor([[1, 1], [0, 1], [1, 1]]).bool()  # AdaViT's tokens may return
    assert stages_of(back) == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize('counts, titles', [
    ([16] * 4, ['blocks 1 to 4\n16 of 16 patches']),
    ([16, 16, 5, 0], ['blocks 1 to 2\n16 of 16 patches', 'block 3\n5 of 16 patches', 'block 4\n0 of 16 patches']),
    ([0] * 3, ['blocks 1 to 3\n0 of 16 patches'])])
def test_panels_say_what_was_left(counts, titles):
    fig = rendered(token_stages(torch.randn(3, 64, 64), kept(16, counts)))
    assert [ax.get_title() for ax in fig.axes] == titles
    for ax, title in zip(fig.axes, titles):
        n = int(title.split('\n')[1].split()[0])
        lines = [c for c in ax.collections if isinstance(c, LineCollection)]
        outlined = edges((np.arange(16) < n).reshape(4, 4), 16, 16)
        assert len(lines) == 2 and all(len(c.get_segments()) == len(outlined) for c in lines)
        assert len(ax.images) == 1 and ax.images[0].get_extent() == [0, 64, 64, 0]


@pytest.mark.parametrize('size, patch, prefix', [
    ((32, 96), 16, 1), ((96, 32), 16, 5), ((64, 64), (8, 32), 1), ((48, 64), None, 2)])
def test_any_grid_and_any_prefix(size, patch, prefix):
    rows, columns = patch_grid(size, 12 + prefix, patch) if patch is None else patch_grid(size, 99, patch)
    patches = rows * columns
    image = torch.randn(1, *size)
    fig = rendered(token_stages(image, kept(patches, [patches, 3, 1], prefix), patch_size=patch))
    assert [ax.get_title().split('\n')[1] for ax in fig.axes] == [f'{n} of {patches} patches' for n in (patches, 3, 1)]
    shown = fig.axes[1].images[0].get_array()
    h, w = size[0] // rows, size[1] // columns
    assert np.allclose(shown[:h, :w], picture(image)[:h, :w])
    assert np.allclose(shown[-h:, -w:], .25 * picture(image)[-h:, -w:] + .75)


def test_many_stages_wrap_and_chosen_blocks_are_shown():
    trace = kept(16, list(range(16, 2, -1)))
    fig = rendered(token_stages(torch.randn(3, 64, 64), trace))
    assert len(fig.axes) == 14 and fig.axes[-1].get_title().startswith('block 14')
    fig = rendered(token_stages(torch.randn(3, 64, 64), trace, stages=(1, 14)))
    assert [ax.get_title() for ax in fig.axes] == ['block 1\n16 of 16 patches', 'block 14\n3 of 16 patches']


def test_what_does_not_fit_together_is_named():
    image, trace = torch.randn(3, 64, 64), kept(16, [16, 4], B=2)
    with pytest.raises(ValueError, match='image 2 is not in a trace of 2'): token_stages(image, trace, 2)
    with pytest.raises(ValueError, match='image -1'): token_stages(image, trace, -1)
    with pytest.raises(ValueError, match=r'stages are \[0, 3\]; blocks are counted from 1 to 2'):
        token_stages(image, trace, stages=[0, 3])
    with pytest.raises(ValueError, match='give the patch_size'): token_stages(image, trace, patch_size=8)
    with pytest.raises(ValueError, match='index the batch'): token_stages(image[None], trace)


@pytest.mark.parametrize('title', ['$5 or $6', 'a $\\frac{1', '50 % & _x^', r'C:\temp'])
def test_titles_are_plain_text(title):
    figures = [token_stages(torch.randn(3, 64, 64), kept(16, [16, 4]), title=title),
               depth_map(kept(16, [16, 4]), title=title),
               token_counts(torch.tensor([3., 4.]), [0, 1], [title, title], title=title)]
    for fig in figures:
        rendered(fig)
        assert fig.get_suptitle() == plain_text(title)
        assert fig._suptitle._preprocess_math(plain_text(title)) == (title, False)


def test_depth_is_written_in_each_patch():
    trace = kept(6, [6, 6, 4, 0])
    fig = rendered(depth_map(trace, grid=(2, 3)))
    ax, bar = fig.axes
    assert [t.get_text() for t in ax.texts] == ['3'] * 4 + ['2'] * 2
    assert ax.images[0].get_array().tolist() == [[3, 3, 3], [3, 2, 2]]
    assert 'blocks' in bar.get_ylabel() and bar.get_yticks().tolist()[0] == 0 and bar.get_yticks().tolist()[-1] == 4


@pytest.mark.parametrize('counts', [[16] * 12, [0] * 12, [16], [0]])
def test_depth_of_all_and_of_none(counts):
    fig = rendered(depth_map(kept(16, counts), image=torch.randn(3, 32, 32)))
    assert len(fig.axes) == 3 and {t.get_text() for t in fig.axes[1].texts} == {str(sum(map(bool, counts)))}


def test_depth_grids():
    assert len(rendered(depth_map(kept(12, [12, 3], 5), image=torch.randn(3, 48, 64))).axes[1].texts) == 12
    assert len(rendered(depth_map(kept(16, [16], 5))).axes[0].texts) == 16
    for grid in [(5, 4), (0, 3)]:
        with pytest.raises(ValueError, match=f'grid {grid[0]}x{grid[1]} does not fit a trace of 17 tokens'):
            depth_map(kept(16, [16]), grid=grid)


def test_counts_from_traces_and_numbers():
    a, b = kept(16, [16, 4], B=2), kept(16, [16, 0])
    assert tokens_per_block(a).tolist() == [11, 11] and tokens_per_block([a, b]).tolist() == [11, 11, 9]
    assert tokens_per_block([1, 2]).tolist() == [1, 2] and tokens_per_block(torch.tensor([[3], [4]])).tolist() == [3, 4]


def test_one_panel_per_level_and_every_image_in_one():
    counts, levels = torch.arange(30.), torch.arange(30) % 3
    fig = rendered(token_counts(counts, levels, ['easy', 'medium', 'hard']))
    assert [ax.get_title('left') for ax in fig.axes] == [f'{name}: 10 images, median {13.5 + k}' for k, name in
                                                         enumerate(['easy', 'medium', 'hard'])]
    assert [sum(p.get_height() for p in ax.patches) for ax in fig.axes] == [10, 10, 10]
    assert 'tokens' in fig.axes[-1].get_xlabel() and all(ax.get_ylabel() == 'images' for ax in fig.axes)
    assert len({ax.get_xlim() for ax in fig.axes}) == 1


@pytest.mark.parametrize('counts', [torch.tensor([5.]), torch.zeros(4), kept(16, [0, 0])])
def test_counts_of_one_image_and_of_none_kept(counts):
    fig = rendered(token_counts(counts))
    assert len(fig.axes) == 1 and fig.axes[0].get_title('left').startswith('all: ')
    assert sum(p.get_height() for p in fig.axes[0].patches) == len(tokens_per_block(counts))


def test_counts_that_cannot_be_drawn_are_named():
    with pytest.raises(ValueError, match='2 levels for 3 images'): token_counts([1, 2, 3], [0, 1])
    for nothing in ([], torch.tensor([])):
        with pytest.raises(ValueError, match='no traces or counts'): token_counts(nothing)
    axes = token_counts([1, 2], [0, 4], ['easy']).axes
    assert [ax.get_title('left').split(':')[0] for ax in axes] == ['easy', 'level 4']


def test_usage_of_gates_is_the_mean_of_the_trace():
    model = adapt(small(), 'adavit', budget=.6).eval()
    images = torch.randn(6, 3, 64, 64)
    calibrate(model, [images])
    with torch.no_grad(): traces = [model(part, return_trace=True)[1] for part in images.split(2)]
    axes = rendered(gate_usage(traces, title='$a $b')).axes
    shown = [np.array([int(text.get_text()) for text in ax.texts]) for ax in axes[:3]]
    heads, ran = (torch.cat([getattr(t, name) for t in traces]).float().mean(0) for name in ('heads', 'sublayers'))
    assert (abs(shown[1] - 100 * heads.flatten().numpy()) <= .5).all()
    assert (abs(shown[2] - 100 * ran.flatten().numpy()) <= .5).all()
    assert len(shown[0]) == len(model.vit.blocks) and 0 < shown[0].mean() < 100
    with pytest.raises(ValueError, match='no traces'): gate_usage([])


def test_depth_distribution_counts_patches_of_each_level():
    trace = kept(16, [16, 8, 4, 4], B=3)
    axis = rendered(depth_distribution([trace, trace], levels=[0, 0, 0, 1, 1, 1], level_names=['$a', 'b'])).axes[0]
    assert [line.get_label() for line in axis.lines] == [r'\$a', 'b']
    for line in axis.lines: assert line.get_ydata().tolist() == [0, 50, 75, 75, 100]
    with pytest.raises(ValueError, match='2 levels for 3 images'): depth_distribution(trace, levels=[0, 1])
    with pytest.raises(ValueError, match='no traces'): depth_distribution([])


def test_gallery_goes_from_easy_to_hard():
    active = torch.cat([kept(16, [16, n, n, n]).active for n in (16, 2, 8, 4)])
    fig = gallery(torch.rand(4, 3, 64, 64), trace_of(active), n=3, patch_size=16, captions=['$x', 'b', 'c', 'd'])
    axes = rendered(fig).axes
    assert [ax.get_title() for ax in axes[:3]] == ['b', 'c', r'\$x']
    blocks = [float(ax.get_title().split()[0]) for ax in axes[3:6]]
    assert blocks == sorted(blocks) and blocks[-1] == 4
    with pytest.raises(ValueError, match='give its batch'): gallery(torch.rand(2, 3, 64, 64), trace_of(active))


def test_figures_of_a_real_trace_masked_and_packed():
    model, images = adaptive(small(), (.06, .065, .07)), torch.randn(3, 3, 64, 64)
    titles = []
    for execution in ('masked', 'packed'):
        model.execution = execution
        with torch.no_grad(): _, trace = model(images, return_trace=True)
        figures = [token_stages(images[2], trace, 2), depth_map(trace, 2, image=images[2]),
                   token_counts(trace, [0, 1, 2])]
        titles.append([ax.get_title() for fig in figures for ax in rendered(fig).axes])
    assert titles[0] == titles[1]
