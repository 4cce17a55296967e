"What a page is told survives the way: booleans, scores on their side of a threshold, pictures."
import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adaptive_tokens.look.encoding import bits_as_text, data_url, levels_of, quantised, text_as_bits


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_no_score_crosses_its_line(values, line):
    v = np.array(values)
    low, high = min(*v, line), max(*v, line)
    high = high if high > low else low + 1
    q = levels_of(v, line, low, high)
    assert ((0 <= q) & (q <= 254)).all() and (q == q.round()).all()
    if high - low > 1e-6: assert ((low + (high - low) * q / 254 >= line) == (v >= line))[abs(v - line) > 1e-9].all()


def test_blocks_without_scores_have_a_range():
    q = quantised(torch.full((1, 2, 3), float('nan')), [None, .5])
    assert set(base64.b64decode(q['levels'])) == {255} and all(h > l for l, h in zip(q['low'], q['high']))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
@settings(deadline=None, max_examples=50)
def test_booleans_come_back(values):
    text = bits_as_text(torch.tensor(values)[None])
    assert text_as_bits(text, (1, len(values))).tolist() == [[int(v) for v in values]]
    assert len(base64.b64decode(text)) == -(-len(values) // 8)


@pytest.mark.parametrize('shape, kind, kept', [
    ((8, 12), 'png', (12, 8)), ((96, 96), 'png', (96, 96)), ((97, 20), 'jpeg', (20, 97)),
    ((672, 336), 'jpeg', (168, 336))])
def test_small_pictures_are_kept_without_loss_and_large_ones_shrink(shape, kind, kept):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)) / 255
    head, body = data_url(pixels).split(',')
    assert head == f'data:image/{kind};base64'
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert image.size == kept
    if kind == 'png': assert (np.asarray(image) == (255 * pixels).round()).all()
