"Cluttered Digits are the same everywhere and know their evidence; real images fail with one clear sentence."
import hashlib
import io
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from adaptive_tokens import data as d
from adaptive_tokens.images.digits import ClutteredDigits, digits_loader
from adaptive_tokens.images.real import image_loader, open_images

# Another fingerprint means other images: every stored accuracy and checkpoint then has to be made anew.
FINGERPRINTS = dict(train='1c8a88510f0d047c', test='662f35a79f757c2b')


@pytest.fixture(scope='module')
def vit(): return timm.create_model('test_vit', img_size=64).eval()


@pytest.fixture
def photos(tmp_path):
    for n, colour in enumerate(('red', 'green', 'blue', 'white')):
        folder = tmp_path/'photos'/f'class{n}'
        folder.mkdir(parents=True)
        Image.new('RGB', (90, 60), colour).save(folder/'photo.png')
    return tmp_path/'photos'


# Numbers

def test_splitmix64_gives_the_published_sequence():
    first = d.random_bits(np.zeros(1, np.uint64), 3)[0].tolist()
    assert first == [0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f]


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 2**32))
def test_below_agrees_with_whole_numbers_of_any_length(bits, n):
    assert d.below(np.array([bits], np.uint64), n)[0] == (bits >> 32) * n >> 32


@settings(deadline=None)
@given(st.integers(-40, 80), st.integers(8, 112), st.sampled_from([32, 64, 96, 224]))
def test_weights_are_zero_outside_of_the_square_and_nearly_sixteen_within(start, side, S):
    w = d.axis_weights(start, side, S)
    inside = (np.arange(S) >= start) & (np.arange(S) < start + side)
    assert (w[~inside] == 0).all() and (w == w.astype(int)).all()
    assert ((w[inside].sum(1) >= 15) & (w[inside].sum(1) <= 16)).all()  # each of two weights is rounded down


def test_pasting_keeps_whole_numbers_within_ink():
    glyph = load_digits().images[:20].astype(np.float32)
    ink = d.paste(glyph, *np.full((3, 20), 13), 64)
    assert (ink == ink.astype(int)).all() and 0 <= ink.min() and ink.max() <= d.INK


def test_noise_is_centred_and_triangular():
    noise = d.pixel_noise(np.arange(1000, dtype=np.uint64), 64)
    assert abs(noise.mean()) < .25 and abs(noise.std() - 104.5) < .5  # two uniform bytes: sqrt((256**2 - 1) / 6)
    assert noise.min() == -255 and noise.max() == 255


# Same pixels everywhere

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
        assert torch.equal(image, d.normalize(pixels)) and label == y and image.dtype == torch.float32


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


# What an image knows about itself

def test_splits_share_no_sample_and_cover_all():
    train, test = (d.digits(s)[0].reshape(-1, 64) for s in ('train', 'test'))
    assert len(train) + len(test) == len(load_digits().target) == 1797
    everything = {x.tobytes() for x in load_digits().data.astype(np.float32)}
    assert {x.tobytes() for x in train} | {x.tobytes() for x in test} == everything
    assert not {x.tobytes() for x in train} & {x.tobytes() for x in test}


def test_sizes_and_labels():
    train, test = ClutteredDigits(), ClutteredDigits('test')
    assert (len(train), len(test), len(ClutteredDigits(size=7))) == (60_000, 10_000, 7)
    share = train.batch(range(3000)).labels.bincount(minlength=10) / 3000
    assert len(share) == 10 and share.min() > .07 and share.max() < .13


@pytest.mark.parametrize('image_size,patch_size', [(64, 8), (64, 16), (32, 4), (96, 8), (224, 16), (224, 14)])
def test_evidence_covers_the_digit_at_any_size(image_size, patch_size):
    n = np.arange(24, dtype=np.uint64)
    pixels, sample, ink = d.render(0, 'train', n, np.zeros(24, int), image_size)
    mask, grid = d.evidence(ink, patch_size), image_size // patch_size
    assert mask.shape == (24, grid**2) and pixels.shape == (24, image_size, image_size)
    spread = np.kron(mask.reshape(-1, grid, grid), np.ones((1, patch_size, patch_size)))
    assert ((ink * spread).sum((1, 2)) >= .95 * ink.sum((1, 2), dtype=float)).all()
    assert ((spread > 0).mean((1, 2)) < .5).all()


def test_evidence_lies_within_the_squares_of_patches_that_hold_the_digit():
    _, _, ink = d.render(0, 'train', np.arange(200, dtype=np.uint64), np.zeros(200, int), 64)
    per_patch = ink.reshape(200, 8, 8, 8, 8).max((2, 4)).reshape(200, 64)
    mask = d.evidence(ink, 8)
    assert (per_patch[mask] > 0).all() and mask.sum(1).min() >= 1 and mask.sum(1).max() <= 16


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
    for n, name in enumerate(d.LEVELS):
        by_name, by_number = (ClutteredDigits('test', level=v).batch(range(9)) for v in (name, n))
        assert torch.equal(by_name.images, by_number.images) and set(by_name.levels.tolist()) == {n}
        assert torch.equal(by_name.images[n::3], mixed.images[n::3])
    assert ClutteredDigits('test').info(5)['level'] == 'hard'


def test_each_level_hides_the_digit_more():
    share = []
    for level in range(3):
        pixels, _, ink = d.render(0, 'test', np.arange(200, dtype=np.uint64), np.full(200, level), 64)
        share.append(np.mean([np.corrcoef(p.ravel(), i.ravel())[0, 1]**2 for p, i in zip(pixels, ink)]))
    assert share[0] > share[1] + .05 > share[2] + .1


def test_info_tells_what_the_batch_knows():
    data = ClutteredDigits()
    b = data.batch([17])
    info = data.info(17)
    assert info['label'] == b.labels[0] and info['level'] == list(d.LEVELS)[b.levels[0]]
    assert torch.equal(info['evidence'], b.evidence[0])


def test_mean_and_std_do_what_normalize_does():
    pixels = ClutteredDigits().batch([0]).images
    mean, std = (torch.tensor(v)[:, None, None] for v in (d.MEAN, d.STD))
    torch.testing.assert_close(d.normalize(pixels), (pixels / 255 - mean) / std, atol=1e-5, rtol=0)


def test_negative_indices_count_from_the_end():
    data = ClutteredDigits(size=5)
    assert torch.equal(data[-1][0], data[4][0])
    assert len(list(DataLoader(data, 2))) == 3


# Wrong arguments

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


# Real images

def test_a_folder_becomes_batches_the_model_takes(photos, vit):
    images, labels = next(iter(image_loader(photos, vit, crop_mode='squash', crop_pct=1.0)))
    assert images.shape == (4, 3, 64, 64) and labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(images[3], torch.ones(3, 64, 64))  # white, normalised with this model's mean and std
    assert vit(images).shape == (4, 1000)


def test_the_transform_is_that_of_timm(vit):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    config = timm.data.resolve_model_data_config(vit) | dict(input_size=(3, 64, 64))
    assert torch.equal(d.image_transform(vit)(photo), timm.data.create_transform(**config)(photo))
    squash = d.image_transform(vit, crop_mode='squash', crop_pct=1.0)(photo)
    assert not torch.equal(squash, d.image_transform(vit)(photo))


def test_a_model_around_the_vit_is_looked_through(vit):
    around = torch.nn.Module()
    around.vit = vit
    assert str(d.image_transform(around)) == str(d.image_transform(vit))


def test_a_tar_reads_like_its_folder(photos, vit, tmp_path):
    with tarfile.open(tmp_path/'photos.tar', 'w') as tar:
        for p in sorted(photos.rglob('*.png')): tar.add(p, p.relative_to(photos).as_posix())
    from_tar, from_folder = (next(iter(image_loader(root, vit))) for root in (tmp_path/'photos.tar', photos))
    assert all(torch.equal(a, b) for a, b in zip(from_tar, from_folder))


def test_shards_are_streamed(photos, vit, tmp_path):
    pytest.importorskip('webdataset')
    with tarfile.open(tmp_path/'shard-0.tar', 'w') as tar:
        for n, p in enumerate(sorted(photos.rglob('*.png'))):
            for name, content in ((f'{n:04}.png', p.read_bytes()), (f'{n:04}.cls', str(n).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    loader = image_loader(tmp_path, vit, name='wds/photos', split='shard-0.tar', data_options=dict(num_samples=4))
    assert sorted(torch.cat([y for _, y in loader]).tolist()) == [0, 1, 2, 3]


def test_a_class_map_numbers_the_folders(photos, vit, tmp_path):
    (tmp_path/'names.txt').write_text('class3\nclass2\nclass1\nclass0\n')
    loader = image_loader(photos, vit, class_map=tmp_path/'names.txt')
    assert next(iter(loader))[1].tolist() == [3, 2, 1, 0]


def test_a_split_is_a_subfolder(photos, vit, tmp_path):
    os.makedirs(tmp_path/'sets')
    photos.rename(tmp_path/'sets'/'val')
    assert len(image_loader(tmp_path/'sets', vit).dataset) == 4
    with pytest.raises(ValueError, match="no split 'vla'; nearest: val"):
        image_loader(tmp_path/'sets', vit, split='vla')


def test_workers_read_the_same_images_and_training_order_is_seeded(photos, vit):
    plain = torch.cat([x for x, _ in image_loader(photos, vit, 3)])
    assert torch.equal(plain, torch.cat([x for x, _ in image_loader(photos, vit, 3, num_workers=2)]))
    orders = {tuple(y.tolist()) for s in range(8) for _, y in image_loader(photos, vit, training=True, seed=s)}
    again = {tuple(y.tolist()) for s in range(8) for _, y in image_loader(photos, vit, training=True, seed=s)}
    assert len(orders) > 1 and orders == again


def truncate(photos):
    path = photos/'class1'/'photo.png'
    path.write_bytes(path.read_bytes()[:-60])


def test_an_unreadable_image_is_named(photos, vit):
    truncate(photos)
    with pytest.raises(ValueError, match="cannot read image 'class1/photo.png'.*unreadable='skip'"):
        list(image_loader(photos, vit))


def test_an_unreadable_image_is_named_by_workers_too(photos, vit):
    (photos/'class2'/'photo.png').write_text('no image at all')
    with pytest.raises(ValueError, match="cannot read image 'class2/photo.png'"):
        list(image_loader(photos, vit, num_workers=1))


def test_an_unreadable_image_is_skipped_where_asked(photos, vit):
    truncate(photos)
    assert torch.cat([y for _, y in image_loader(photos, vit, unreadable='skip')]).tolist() == [0, 2, 2, 3]


@pytest.mark.parametrize('arrange,kwargs,error,says', [
    (lambda p: p/'nowhere', {}, FileNotFoundError, "no folder or tar file '{root}'"),
    (lambda p: (p/'empty').mkdir() or p/'empty', {}, ValueError, "no image in '{root}' for split 'validation'; looked"),
    (lambda p: p/'class1'/'photo.png', {}, ValueError, "'{root}' is neither a folder nor a .tar file"),
    (lambda p: (p/'a.tar').write_text('x') and p/'a.tar', {}, ValueError, "'{root}' is not a whole tar file"),
    (lambda p: tarfile.open(p/'b.tar', 'w').close() or p/'b.tar', {}, ValueError, "no image in '{root}'"),
    (lambda p: p, dict(class_map='names.txt'), FileNotFoundError, "no class map file 'names.txt'"),
    (lambda p: p, dict(class_map=dict(cat=0)), ValueError, "no image whose class is in the class map"),
    (lambda p: p, dict(split='vall'), ValueError, "no split 'vall'; nearest: val"),
    (lambda p: p, dict(unreadable='skpi'), ValueError, "no choice for unreadable images 'skpi'; nearest: skip"),
], ids=['nowhere', 'empty', 'file', 'no tar', 'empty tar', 'no map', 'foreign map', 'split', 'unreadable'])
def test_wrong_roots_are_named(photos, vit, arrange, kwargs, error, says):
    root = arrange(photos)
    with pytest.raises(error) as e: image_loader(root, vit, **kwargs)
    assert says.format(root=root) in str(e.value) and '\n' not in str(e.value)


def test_a_folder_without_images_is_refused_before_any_model(tmp_path):
    (tmp_path/'notes.md').write_text('no image')
    with pytest.raises(ValueError, match='looked for .png, .jpg, .jpeg'): open_images(tmp_path)


@pytest.mark.hub
def test_imagenet_tar_with_its_class_map():
    place = Path(os.environ['ADAPTIVE_TOKENS_IMAGES'])
    deit = timm.create_model('deit_tiny_patch16_224', pretrained=True).eval()
    loader = image_loader(place/'imagenet_val_1300.tar', deit, 50, class_map=place/'imagenet_wnids.txt',
                          crop_mode='squash', crop_pct=1.0)
    images, labels = next(iter(loader))
    assert len(loader.dataset) == 1300 and images.shape == (50, 3, 224, 224)
    with torch.no_grad(): assert (deit(images).argmax(1) == labels).float().mean() > .6


def test_what_is_skipped_is_named_once_and_counted_by_every_process(photos, vit):
    truncate(photos)
    for workers in (0, 1):
        loader = image_loader(photos, vit, unreadable='skip', num_workers=workers)
        if workers: list(loader)
        else:
            with pytest.warns(UserWarning, match="image 'class1/photo.png' cannot be read and is skipped") as told: list(loader), list(loader)
            assert sum('is skipped' in str(w.message) for w in told) == 1
        assert loader.dataset.skipped == ['class1/photo.png']


def test_nothing_to_read_at_all_is_said(photos, vit):
    for file in photos.rglob('*.png'): file.write_text('no image')
    with pytest.raises(ValueError, match='none of the 4 images can be read'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        list(image_loader(photos, vit, unreadable='skip'))


def test_a_class_without_an_image_is_refused_in_training_and_said_of_a_class_map(photos, vit):
    (photos/'class9').mkdir()
    assert len(image_loader(photos, vit).dataset) == 4  # measuring needs no image of every class
    with pytest.raises(ValueError, match=r"class folder 'class9' in .* holds no image: add some, or remove it"):
        image_loader(photos, vit, training=True)
    names = dict(class0=0, class1=1, class2=2, class3=3, class9=4)
    with pytest.warns(UserWarning, match="1 of 5 classes have no image in .*, the first: 'class9'"):
        image_loader(photos, vit, training=True, class_map=names)


@pytest.mark.parametrize('spoil, says', [
    (lambda file, m: file.unlink() or file.symlink_to(file.with_name('nowhere.png')), 'No such file'),
    (lambda file, m: file.write_text('no image'), 'cannot identify'),
    (lambda file, m: Image.new('L', (3000, 3000)).save(file) or m.setattr(Image, 'MAX_IMAGE_PIXELS', 4_000_000), 'decompression bomb'),
], ids=['dangling link', 'text', 'far too many pixels'])
def test_whatever_hinders_reading_names_the_file(photos, vit, monkeypatch, spoil, says):
    loader = image_loader(photos, vit)
    spoil(photos/'class1'/'photo.png', monkeypatch)
    with pytest.raises(ValueError, match=f"cannot read image 'class1/photo.png'.*{says}"): list(loader)
    with pytest.warns(UserWarning, match='is skipped'): labels = torch.cat([y for _, y in image_loader(photos, vit, unreadable='skip')])
    assert labels.tolist() == [0, 2, 2, 3]


def test_a_thousand_unreadable_files_in_a_row_are_skipped(photos, vit):
    for n in range(1000): (photos/'class1'/f'{n:04}.png').write_text('no image')
    data = image_loader(photos, vit, unreadable='skip').dataset
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert data[1][1] == 1 and len(data.skipped) == 1000  # class1/photo.png comes last of its class
    with pytest.raises(IndexError): data[len(data)]


def test_grey_images_for_a_backbone_of_one_channel(photos):
    vit = timm.create_model('test_vit', in_chans=1)
    images, _ = next(iter(image_loader(photos, vit, data_options=dict(input_img_mode='L'), mean=(.5,), std=(.5,))))
    assert images.shape[1] == 1


def test_a_class_map_may_lie_beside_the_splits(photos, vit, tmp_path):
    (root := tmp_path/'sets').mkdir()
    photos.rename(root/'val')
    (root/'names.txt').write_text('class3\nclass2\nclass1\nclass0\n')
    labels = torch.cat([y for _, y in image_loader(root, vit, split='val', class_map='names.txt')])
    assert sorted(labels.tolist()) == [0, 1, 2, 3]
    (root/'names.csv').write_text('class3\n')
    with pytest.raises(ValueError, match="class map 'names.csv' is no .txt file"): image_loader(root, vit, split='val', class_map='names.csv')


@pytest.mark.parametrize('changes', [dict(no_embed_class=True), dict(reg_tokens=2), dict(model_name='deit3_small_patch16_224')], ids=str)
def test_positions_of_patches_start_as_sines_whatever_comes_before(changes):
    vit = d.digits_vit(**changes)
    torch.testing.assert_close(vit.pos_embed[0, -64:], d.digits_vit().pos_embed[0, 1:])


def test_a_root_that_holds_only_the_other_split_is_refused(photos, vit, tmp_path):
    (root := tmp_path/'sets').mkdir()
    photos.rename(root/'train')
    with pytest.raises(ValueError, match="holds 'train' and nothing for split 'validation'"): image_loader(root, vit)
    assert len(image_loader(root, vit, split='train').dataset) == 4
    (root/'images').mkdir()
    (root/'train').rename(root/'images'/'train')
    (root/'images'/'car').mkdir()  # classes may be called so
    Image.new('RGB', (90, 60)).save(root/'images'/'car'/'photo.png')
    assert len(image_loader(root/'images', vit).dataset) == 5
