"Pieces of Cluttered Digits: draws, weights, ink, noise, and evidence that covers the digit."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from adaptive_tokens.images.drawing import (INK, axis_weights, digit_samples, evidence, paste, pixel_noise,
    randint_from_bits, random_bits, render)


def test_splitmix64_gives_the_published_sequence():
    first = random_bits(np.zeros(1, np.uint64), 3)[0].tolist()
    assert first == [0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f]


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 2**32))
def test_below_agrees_with_whole_numbers_of_any_length(bits, n):
    assert randint_from_bits(np.array([bits], np.uint64), n)[0] == (bits >> 32) * n >> 32


@settings(deadline=None)
@given(st.integers(-40, 80), st.integers(8, 112), st.sampled_from([32, 64, 96, 224]))
def test_weights_are_zero_outside_of_the_square_and_nearly_sixteen_within(start, side, S):
    w = axis_weights(start, side, S)
    inside = (np.arange(S) >= start) & (np.arange(S) < start + side)
    assert (w[~inside] == 0).all() and (w == w.astype(int)).all()
    assert ((w[inside].sum(1) >= 15) & (w[inside].sum(1) <= 16)).all()  # each of two weights is rounded down


def test_pasting_keeps_whole_numbers_within_ink():
    glyph = load_digits().images[:20].astype(np.float32)
    ink = paste(glyph, *np.full((3, 20), 13), 64)
    assert (ink == ink.astype(int)).all() and 0 <= ink.min() and ink.max() <= INK


def test_noise_is_centred_and_triangular():
    noise = pixel_noise(np.arange(1000, dtype=np.uint64), 64)
    assert abs(noise.mean()) < .25 and abs(noise.std() - 104.5) < .5  # two uniform bytes: sqrt((256**2 - 1) / 6)
    assert noise.min() == -255 and noise.max() == 255


def test_splits_share_no_sample_and_cover_all():
    train, test = (digit_samples(s)[0].reshape(-1, 64) for s in ('train', 'test'))
    assert len(train) + len(test) == len(load_digits().target) == 1797
    everything = {x.tobytes() for x in load_digits().data.astype(np.float32)}
    assert {x.tobytes() for x in train} | {x.tobytes() for x in test} == everything
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in test}


@pytest.mark.parametrize('image_size,patch_size', [(64, 8), (64, 16), (32, 4), (96, 8), (224, 16), (224, 14)])
def test_evidence_covers_the_digit_at_any_size(image_size, patch_size):
    n = np.arange(24, dtype=np.uint64)
    pixels, sample, ink = render(0, 'train', n, np.zeros(24, int), image_size)
    mask, grid = evidence(ink, patch_size), image_size // patch_size
    assert mask.shape == (24, grid**2) and pixels.shape == (24, image_size, image_size)
    spread = np.kron(mask.reshape(-1, grid, grid), np.ones((1, patch_size, patch_size)))
    assert ((ink * spread).sum((1, 2)) >= .95 * ink.sum((1, 2), dtype=float)).all()
    assert ((spread > 0).mean((1, 2)) < .5).all()


def test_evidence_lies_within_the_squares_of_patches_that_hold_the_digit():
    _, _, ink = render(0, 'train', np.arange(200, dtype=np.uint64), np.zeros(200, int), 64)
    per_patch = ink.reshape(200, 8, 8, 8, 8).max((2, 4)).reshape(200, 64)
    mask = evidence(ink, 8)
    assert (per_patch[mask] > 0).all() and mask.sum(1).min() >= 1 and mask.sum(1).max() <= 16


def test_each_level_hides_the_digit_more():
    share = []
    for level in range(3):
        pixels, _, ink = render(0, 'test', np.arange(200, dtype=np.uint64), np.full(200, level), 64)
        share.append(np.mean([np.corrcoef(p.ravel(), i.ravel())[0, 1]**2 for p, i in zip(pixels, ink)]))
    assert share[0] > share[1] + .05 > share[2] + .1
