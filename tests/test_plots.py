"Figures are judged by what is in them: panels, numbers, labels, segments; the eye judges the rest in the notebook."
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings, strategies as st
from matplotlib.collections import LineCollection

from adaptive_tokens.models.method import Method
from adaptive_tokens.models.model import adapt, calibrate
from adaptive_tokens.models.trace import Trace
from adaptive_tokens.look.figures import (depth_distribution, depth_map, edges, fade, gallery, gate_usage,
    patch_grid, picture, stages_of, token_counts, token_stages, tokens_per_block)
from adaptive_tokens.look.heads import head_importance, head_scores, head_terms
from adaptive_tokens.look.style import METHOD_COLOURS, METHOD_MARKERS, plain_text


def trace_of(active):
    "A trace whose active tokens are given [B, L, N]"
    return Trace(active, torch.full(active.shape, float('nan')), active[:, :, :2], active[:, :, :2], active.sum((1, 2)).float())


def kept(patches, counts, prefix=1, B=1):
    "A trace that keeps the first counts[l] patches in block l"
    on = torch.arange(patches)[None] < torch.tensor(counts)[:, None]
    return trace_of(torch.cat([torch.ones(len(counts), prefix, dtype=torch.bool), on], 1).expand(B, -1, -1))


def rendered(fig):
    "The figure drawn, closed and not shown twice"
    assert plt.get_fignums() == []
    fig.savefig(file := io.BytesIO())
    assert file.tell() > 1000
    return fig


def small(**changes):
    torch.manual_seed(0)
    return timm.create_model('test_vit', **{**dict(img_size=64, num_classes=10, depth=4), **changes}).eval()


# --- one image

def test_picture_stretches_or_undoes_the_transform():
    image = torch.tensor([[[-2., 0.], [2., 6.]]])
    assert picture(image)[..., 0].tolist() == [[0, .25], [.5, 1]] and picture(image).shape == (2, 2, 3)
    assert picture(image, mean=[.5], std=[.25])[..., 1].tolist() == [[0, .5], [1, 1]]
    assert (picture(torch.ones(3, 2, 2)) == 0).all()
    for shape in [(2, 3, 8, 8), (8, 8), (2, 8, 8)]:
        with pytest.raises(ValueError, match='image has shape'): picture(torch.zeros(shape))


@pytest.mark.parametrize('size, N, patch, grid', [
    ((224, 224), 197, None, (14, 14)), ((224, 224), 198, None, (14, 14)), ((518, 518), 5 + 37*37, None, (37, 37)),
    ((64, 64), 64, None, (8, 8)), ((64, 96), 25, None, (4, 6)), ((96, 32), 5 + 12, 16, (6, 2)), ((64, 64), 33, (8, 16), (8, 4)),
    ((16, 16), 2, None, (1, 1))])
def test_grid_from_image_and_tokens(size, N, patch, grid): assert patch_grid(size, N, patch) == grid


@pytest.mark.parametrize('patch', [7, 4, 0, -8, (8, 5)])
def test_a_patch_that_does_not_fit_is_named(patch):
    with pytest.raises(ValueError, match='do not fit an image of 64x64 with 65 tokens'): patch_grid((64, 64), 65, patch)
    with pytest.raises(ValueError, match='give patch_size'): patch_grid((64, 96), 5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.randoms())
def test_edges_are_the_borders_between_kept_and_not(rows, columns, random):
    on = np.array([[random.random() < .5 for _ in range(columns)] for _ in range(rows)])
    value = lambda r, c: 0 <= r < rows and 0 <= c < columns and on[r, c]
    wanted = {((c, r), (c + 1, r)) for r in range(rows + 1) for c in range(columns) if value(r, c) != value(r - 1, c)}
    wanted |= {((c, r), (c, r + 1)) for r in range(rows) for c in range(columns + 1) if value(r, c) != value(r, c - 1)}
    found = edges(on, 1, 1)
    assert len(found) == len(wanted) and set(found) == wanted
    assert set(edges(on, 3, 2)) == {((2*a, 3*b), (2*c, 3*d)) for (a, b), (c, d) in wanted}


def test_fading_leaves_kept_patches_alone():
    pixels, on = np.random.default_rng(0).random((4, 6, 3)), np.array([[1, 0, 1], [0, 0, 1]], bool)
    faded = fade(pixels, on)
    assert (faded[:2, :2] == pixels[:2, :2]).all() and (faded[:, 4:] == pixels[:, 4:]).all()
    assert np.allclose(faded[:2, 2:4], .25 * pixels[:2, 2:4] + .75) and np.allclose(faded[2:, :4], .25 * pixels[2:, :4] + .75)


# --- stages

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


@pytest.mark.parametrize('size, patch, prefix', [((32, 96), 16, 1), ((96, 32), 16, 5), ((64, 64), (8, 32), 1), ((48, 64), None, 2)])
def test_any_grid_and_any_prefix(size, patch, prefix):
    rows, columns = patch_grid(size, 12 + prefix, patch) if patch is None else patch_grid(size, 99, patch)
    patches = rows * columns
    image = torch.randn(1, *size)
    fig = rendered(token_stages(image, kept(patches, [patches, 3, 1], prefix), patch_size=patch))
    assert [ax.get_title().split('\n')[1] for ax in fig.axes] == [f'{n} of {patches} patches' for n in (patches, 3, 1)]
    shown = fig.axes[1].images[0].get_array()
    h, w = size[0] // rows, size[1] // columns
    assert np.allclose(shown[:h, :w], picture(image)[:h, :w]) and np.allclose(shown[-h:, -w:], .25 * picture(image)[-h:, -w:] + .75)


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
    with pytest.raises(ValueError, match=r'stages are \[0, 3\]; blocks are counted from 1 to 2'): token_stages(image, trace, stages=[0, 3])
    with pytest.raises(ValueError, match='give the patch_size'): token_stages(image, trace, patch_size=8)
    with pytest.raises(ValueError, match='index the batch'): token_stages(image[None], trace)


@pytest.mark.parametrize('title', ['$5 or $6', 'a $\\frac{1', '50 % & _x^', r'C:\temp'])
def test_titles_are_plain_text(title):
    figures = [token_stages(torch.randn(3, 64, 64), kept(16, [16, 4]), title=title), depth_map(kept(16, [16, 4]), title=title),
               token_counts(torch.tensor([3., 4.]), [0, 1], [title, title], title=title)]
    for fig in figures:
        rendered(fig)
        assert fig.get_suptitle() == plain(title) and fig._suptitle._preprocess_math(plain(title)) == (title, False)


# --- depth

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


# --- counts

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
    assert [ax.get_title('left').split(':')[0] for ax in token_counts([1, 2], [0, 4], ['easy']).axes] == ['easy', 'level 4']


# --- heads

def adaptive(vit, theta): return adapt(vit, 'as-vit', places=(1, 2, 3), theta=theta).eval()


@pytest.mark.parametrize('size', [(64, 64), (32, 96)])
def test_terms_of_the_heads_add_up_to_the_score(size):
    model, image = adaptive(small(img_size=size), (.06, .07, .08)), torch.randn(3, *size)
    with torch.no_grad(): _, trace = model(image[None], return_trace=True)
    terms = head_terms(model, image)
    assert list(terms) == [1, 2, 3] and [theta for _, theta in terms.values()] == pytest.approx([.06, .07, .08])
    for l, (by_head, _) in terms.items():
        assert by_head.shape == (len(image[0]) * len(image[0, 0]) // 256, model.vit.blocks[0].attn.num_heads)
        assert torch.allclose(by_head.sum(1), trace.score[0, l - 1, 1:], atol=1e-6, equal_nan=True)


@pytest.mark.parametrize('theta', [(-1., -1., -1.), (9., 9., 9.), (.0625, 9., 9.)])
@pytest.mark.parametrize('size', [(64, 64), (32, 96)])
def test_a_panel_per_stage_and_head_and_one_for_the_sum(theta, size):
    vit = small(img_size=size)
    model, heads = adaptive(vit, theta), vit.blocks[0].attn.num_heads
    fig = rendered(head_scores(model.train(), torch.randn(3, *size), title='$a $b'))
    maps, bars = [ax for ax in fig.axes if ax.images], [ax for ax in fig.axes if ax.get_label() == '<colorbar>']
    assert model.training and len(maps) == 3 * (heads + 1) and len(bars) == 2 * 3 and all('score' in ax.get_ylabel() for ax in bars)
    assert maps[0].images[0].get_array().shape == tuple(vit.patch_embed.grid_size)
    sums = [ax.get_title() for ax in maps if ax.get_title().startswith('sum')]
    patches = vit.patch_embed.num_patches
    if theta[0] < 0: assert [s.split()[1] for s in sums] == [str(patches)] * 3
    if theta[1] > 1: assert [s.split()[1] for s in sums[1:]] == ['0', '0']


def test_models_without_such_terms_are_named():
    vit = small()
    class Whole(Method): name = 'whole'
    image = torch.randn(3, 64, 64)
    with pytest.raises(ValueError, match='whole has no score'): head_scores(adapt(vit, Whole(vit)), image)
    with pytest.raises(ValueError, match='has no score'): head_scores(vit, image)
    with pytest.raises(ValueError, match='at budget 1 nothing is scored'): head_scores(adapt(vit, 'as-vit', budget=1), image)
    with pytest.raises(ValueError, match='images have shape'): head_scores(adaptive(vit, (0, 0, 0)), image[None])
    with pytest.raises(ValueError, match='NaN'): head_scores(adaptive(vit, (0, 0, 0)), image / 0)


def test_importance_of_heads_is_the_mean_over_patches_that_are_left():
    "Against plain attention, image by image, on the patches that the trace calls active."
    model, images = adaptive(small(), (0, 0, 0)), torch.randn(3, 3, 64, 64)
    calibrate(model, [images], .6)
    with torch.no_grad(): _, trace = model(images, return_trace=True)
    axes = rendered(head_importance(model.train(), images, title='$a $b')).axes
    H, left = model.vit.blocks[0].attn.num_heads, trace.active[..., 1:]
    wanted, model = [[] for _ in range(4)], model.eval()
    assert 0 < left[:, 3].sum() < left[:, 0].sum()
    with torch.no_grad():
        for i in range(3):
            x = model.vit.pos_drop(model.vit._pos_embed(model.vit.patch_embed(images[i:i + 1])))
            for l, block in enumerate(model.vit.blocks):
                x = x[:, trace.active[i, l][trace.active[i, l - 1]]] if l else x
                q, k, v = block.attn.qkv(block.norm1(x)).reshape(1, -1, 3, H, x.shape[2] // H).permute(2, 0, 3, 1, 4)
                norm = ((q @ k.transpose(-1, -2) * q.shape[-1]**-.5).softmax(-1) @ v).norm(dim=-1)[0, :, 1:]
                wanted[l].append(norm / norm.sum(0))
                x = block(x)
    wanted = [100 * torch.cat(w, 1).mean(1) for w in wanted]
    shown = torch.tensor([float(t.get_text()) for t in axes[0].texts]).view(4, H)
    assert (shown - torch.stack(wanted)).abs().max() <= .501
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ['scores 1', 'scores 2', 'scores 3', '4']
    assert axes[0].get_xlabel() == f'head (alike: {100 / H:.0f} each)'


def test_importance_without_stages_without_patches_and_without_heads_that_count():
    vit, images = small(), torch.randn(2, 3, 64, 64)
    H = vit.blocks[0].attn.num_heads
    assert len(rendered(head_importance(adapt(vit, 'as-vit', budget=1), images)).axes[0].texts) == 4 * H
    fig = rendered(head_importance(adaptive(vit, (9., 9., 9.)), images))  # nobody is left after block 1
    assert len(fig.axes[0].texts) == H
    with pytest.raises(ValueError, match='adavit has no score'): head_importance(adapt(vit, 'adavit', .6), images)
    with pytest.raises(ValueError, match='images have shape'): head_importance(adaptive(vit, (0, 0, 0)), images[0])
    in_half = head_importance(adaptive(small(), (-1., -1., -1.)).bfloat16(), images.bfloat16())
    whole = head_importance(adaptive(small(), (-1., -1., -1.)), images)
    assert all(abs(int(a.get_text()) - int(b.get_text())) <= 1 for a, b in zip(in_half.axes[0].texts, whole.axes[0].texts))


# --- gates

def test_usage_of_gates_is_the_mean_of_the_trace():
    model = adapt(small(), 'adavit', budget=.6).eval()
    images = torch.randn(6, 3, 64, 64)
    calibrate(model, [images])
    with torch.no_grad(): traces = [model(part, return_trace=True)[1] for part in images.split(2)]
    axes = rendered(gate_usage(traces, title='$a $b')).axes
    shown = [np.array([int(text.get_text()) for text in ax.texts]) for ax in axes[:3]]
    heads, ran = (torch.cat([getattr(t, name) for t in traces]).float().mean(0) for name in ('heads', 'sublayers'))
    assert (abs(shown[1] - 100 * heads.flatten().numpy()) <= .5).all() and (abs(shown[2] - 100 * ran.flatten().numpy()) <= .5).all()
    assert len(shown[0]) == len(model.vit.blocks) and 0 < shown[0].mean() < 100
    with pytest.raises(ValueError, match='no traces'): gate_usage([])


# --- depths

def test_depth_distribution_counts_patches_of_each_level():
    trace = kept(16, [16, 8, 4, 4], B=3)
    axis = rendered(depth_distribution([trace, trace], levels=[0, 0, 0, 1, 1, 1], level_names=['$a', 'b'])).axes[0]
    assert [line.get_label() for line in axis.lines] == [r'\$a', 'b']
    for line in axis.lines: assert line.get_ydata().tolist() == [0, 50, 75, 75, 100]
    with pytest.raises(ValueError, match='2 levels for 3 images'): depth_distribution(trace, levels=[0, 1])
    with pytest.raises(ValueError, match='no traces'): depth_distribution([])


def test_gallery_goes_from_easy_to_hard():
    active = torch.cat([kept(16, [16, n, n, n]).active for n in (16, 2, 8, 4)])
    axes = rendered(gallery(torch.rand(4, 3, 64, 64), trace_of(active), n=3, patch_size=16, captions=['$x', 'b', 'c', 'd'])).axes
    assert [ax.get_title() for ax in axes[:3]] == ['b', 'c', r'\$x']
    blocks = [float(ax.get_title().split()[0]) for ax in axes[3:6]]
    assert blocks == sorted(blocks) and blocks[-1] == 4
    with pytest.raises(ValueError, match='give its batch'): gallery(torch.rand(2, 3, 64, 64), trace_of(active))


# --- a whole run

def test_figures_of_a_real_trace_masked_and_packed():
    model, images = adaptive(small(), (.06, .065, .07)), torch.randn(3, 3, 64, 64)
    titles = []
    for execution in ('masked', 'packed'):
        model.execution = execution
        with torch.no_grad(): _, trace = model(images, return_trace=True)
        figures = [token_stages(images[2], trace, 2), depth_map(trace, 2, image=images[2]), token_counts(trace, [0, 1, 2])]
        titles.append([ax.get_title() for fig in figures for ax in rendered(fig).axes])
    assert titles[0] == titles[1]


def test_methods_differ_in_colour_and_marker():
    assert METHOD_COLOURS.keys() == METHOD_MARKERS.keys() and {'dense', 'as-vit', 'a-vit', 'adavit'} <= METHOD_COLOURS.keys()
    assert len(set(METHOD_COLOURS.values())) == len(set(METHOD_MARKERS.values())) == len(METHOD_COLOURS)
