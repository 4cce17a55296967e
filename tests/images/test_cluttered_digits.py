"Cluttered Digits are the same everywhere and know their evidence."
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from adaptive_tokens.images.digits import ClutteredDigits, digits_loader, digits_vit, normalize
from adaptive_tokens.images.drawing import LEVELS, MEAN, STD

# Another fingerprint means other images: every stored accuracy and checkpoint then has to be made anew.
FINGERPRINTS = dict(train='1c8a88510f0d047c', test='662f35a79f757c2b')


@pytest.mark.parametrize('split', FINGERPRINTS)
def test_fingerprint(split):
    pixels = ClutteredDigits(split).batch(range(64)).images[:, 0].numpy()
    assert pixels.dtype == np.uint8
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == FINGERPRINTS[split]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 59_999), min_size=1, max_size=9), st.sampled_from([None, 0, 1, 2]))
def test_an_image_knows_neither_order_nor_batch_mates(indices, level):
    data = ClutteredDigits(level=level)
    together = data.batch(indices)
    for k, i in enumerate(indices):
        for a, b in zip(data.batch([i]), together): assert torch.equal(a[0], b[k])


def test_a_batch_longer_than_one_part_is_its_images_in_order():
    data = ClutteredDigits('test')
    whole = data.batch(range(300))
    for k in (0, 255, 256, 299):
        for a, b in zip(data.batch([k]), whole): assert torch.equal(a[0], b[k])


def test_items_and_batches_agree():
    data = ClutteredDigits('test')
    b = data.batch([4, 9])
    for (image, label), pixels, y in zip((data[4], data[9]), b.images, b.labels):
        assert torch.equal(image, normalize(pixels)) and label == y and image.dtype == torch.float32


def test_workers_make_the_same_pixels():
    one, two = (list(digits_loader(size=96, batch_size=32, num_workers=w)) for w in (0, 2))
    assert all(torch.equal(a, b) for x, y in zip(one, two) for a, b in zip(x, y))


def test_the_state_of_numpy_and_torch_does_not_matter():
    np.random.seed(1); torch.manual_seed(1)
    first = next(iter(digits_loader(size=300, batch_size=50)))[0]
    np.random.seed(2); torch.manual_seed(2)
    assert torch.equal(first, next(iter(digits_loader(size=300, batch_size=50)))[0])


def test_seed_split_and_index_each_make_another_image():
    images = [ClutteredDigits(seed=s).batch([i]).images for s in (0, 1) for i in (0, 3)]
    images += [ClutteredDigits('test', seed=s).batch([0]).images for s in (0, 1)]
    assert len({x.numpy().tobytes() for x in images}) == len(images)


def test_order_is_seeded_and_new_each_epoch():
    labels = lambda loader: torch.cat([y for _, y in loader]).tolist()
    a, b, other = (digits_loader(size=200, seed=s) for s in (3, 3, 4))
    first = labels(a)
    assert first == labels(b) != labels(other)
    assert first != labels(a) and sorted(first) == sorted(labels(a))
    assert labels(digits_loader('test', size=200)) == ClutteredDigits('test', 200).batch(range(200)).labels.tolist()


def test_sizes_and_labels():
    train, test = ClutteredDigits(), ClutteredDigits('test')
    assert (len(train), len(test), len(ClutteredDigits(size=7))) == (60_000, 10_000, 7)
    share = train.batch(range(3000)).labels.bincount(minlength=10) / 3000
    assert len(share) == 10 and share.min() > .07 and share.max() < .13


def test_clutter_is_no_evidence():
    easy, hard = (ClutteredDigits('test', level=v).batch(range(60)) for v in (0, 2))
    assert torch.equal(easy.evidence, hard.evidence) and torch.equal(easy.labels, hard.labels)
    assert not torch.equal(easy.images, hard.images)


def test_size_of_the_canvas_leaves_the_picture():
    small, large = (ClutteredDigits('test', 12, 'easy', s, s // 8).batch(range(12)) for s in (64, 128))
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 2)
    assert torch.equal(small.labels, large.labels) and (shrunk - small.images.float()).abs().mean() < 6
    assert (small.evidence != large.evidence).float().mean() < .01  # a patch at the threshold may tip


def test_levels():
    mixed = ClutteredDigits('test').batch(range(9))
    assert mixed.levels.tolist() == [0, 1, 2] * 3
    for n, name in enumerate(LEVELS):
        by_name, by_number = (ClutteredDigits('test', level=v).batch(range(9)) for v in (name, n))
        assert torch.equal(by_name.images, by_number.images) and set(by_name.levels.tolist()) == {n}
        assert torch.equal(by_name.images[n::3], mixed.images[n::3])
    assert ClutteredDigits('test').info(5)['level'] == 'hard'


def test_info_tells_what_the_batch_knows():
    data = ClutteredDigits()
    b = data.batch([17])
    info = data.info(17)
    assert info['label'] == b.labels[0] and info['level'] == list(LEVELS)[b.levels[0]]
    assert torch.equal(info['evidence'], b.evidence[0])


def test_mean_and_std_do_what_normalize_does():
    pixels = ClutteredDigits().batch([0]).images
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    torch.testing.assert_close(normalize(pixels), (pixels / 255 - mean) / std, atol=1e-5, rtol=0)


def test_negative_indices_count_from_the_end():
    data = ClutteredDigits(size=5)
    assert torch.equal(data[-1][0], data[4][0])
    assert len(list(DataLoader(data, 2))) == 3


@pytest.mark.parametrize('make,says', [
    (lambda: ClutteredDigits('tset'), "no split 'tset'; nearest: test"),
    (lambda: digits_loader('trian'), "no split 'trian'; nearest: train"),
    (lambda: ClutteredDigits(level='hrad'), "no level 'hrad'; nearest: hard"),
    (lambda: ClutteredDigits(level=3), 'no level 3; nearest:'),
    (lambda: ClutteredDigits(level=-1), 'no level -1; nearest:'),
    (lambda: ClutteredDigits(image_size=64, patch_size=7), 'image_size 64 is not a multiple of patch_size 7'),
    (lambda: ClutteredDigits(image_size=64, patch_size=0), 'image_size 64 is not a multiple of patch_size 0'),
    (lambda: ClutteredDigits(image_size=16), 'image_size 16 is too small'),
    (lambda: ClutteredDigits(size=0), 'size 0 leaves no image'),
    (lambda: ClutteredDigits(seed=-1), 'seed -1 is negative'),
])
def test_wrong_arguments_are_named(make, says):
    with pytest.raises(ValueError) as e: make()
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('i', [5, -6])
def test_an_index_outside_is_named(i):
    with pytest.raises(IndexError, match=f'image {i} of a data set of 5'): ClutteredDigits(size=5)[i]


@pytest.mark.parametrize('changes', [dict(no_embed_class=True), dict(reg_tokens=2),
                                     dict(model_name='deit3_small_patch16_224')], ids=str)
def test_positions_of_patches_start_as_sines_whatever_comes_before(changes):
    vit = digits_vit(**changes)
    torch.testing.assert_close(vit.pos_embed[0, -64:], digits_vit().pos_embed[0, 1:])
