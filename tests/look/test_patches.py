"An image and its patches: pixels, grid, the line around what is kept, and what fades."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_tokens.look.patches import edges, fade, patch_grid, picture


def test_picture_stretches_or_undoes_the_transform():
    image = torch.tensor([[[-2., 0.], [2., 6.]]])
    assert picture(image)[..., 0].tolist() == [[0, .25], [.5, 1]] and picture(image).shape == (2, 2, 3)
    assert picture(image, mean=[.5], std=[.25])[..., 1].tolist() == [[0, .5], [1, 1]]
    assert (picture(torch.ones(3, 2, 2)) == 0).all()
    for shape in [(2, 3, 8, 8), (8, 8), (2, 8, 8)]:
        with pytest.raises(ValueError, match='image has shape'): picture(torch.zeros(shape))


@pytest.mark.parametrize('size, N, patch, grid', [
    ((224, 224), 197, None, (14, 14)), ((224, 224), 198, None, (14, 14)), ((518, 518), 5 + 37*37, None, (37, 37)),
    ((64, 64), 64, None, (8, 8)), ((64, 96), 25, None, (4, 6)), ((96, 32), 5 + 12, 16, (6, 2)),
    ((64, 64), 33, (8, 16), (8, 4)),
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
    assert np.allclose(faded[:2, 2:4], .25 * pixels[:2, 2:4] + .75)
    assert np.allclose(faded[2:, :4], .25 * pixels[2:, :4] + .75)
