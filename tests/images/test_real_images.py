"Real images reach a model as it wants them, or fail with one clear sentence."
import io
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from adaptive_tokens.images.real import image_loader, image_transform, open_images


@pytest.fixture(scope='module')
def vit(): return timm.create_model('test_vit', img_size=64).eval()


@pytest.fixture
def photos(tmp_path):
    for n, colour in enumerate(('red', 'green', 'blue', 'white')):
        folder = tmp_path/'photos'/f'class{n}'
        folder.mkdir(parents=True)
        Image.new('RGB', (90, 60), colour).save(folder/'photo.png')
    return tmp_path/'photos'


def test_a_folder_becomes_batches_the_model_takes(photos, vit):
    images, labels = next(iter(image_loader(photos, vit, crop_mode='squash', crop_pct=1.0)))
    assert images.shape == (4, 3, 64, 64) and labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(images[3], torch.ones(3, 64, 64))  # white, normalised with this model's mean and std
    assert vit(images).shape == (4, 1000)


def test_the_transform_is_that_of_timm(vit):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    config = timm.data.resolve_model_data_config(vit) | dict(input_size=(3, 64, 64))
    assert torch.equal(image_transform(vit)(photo), timm.data.create_transform(**config)(photo))
    squash = image_transform(vit, crop_mode='squash', crop_pct=1.0)(photo)
    assert not torch.equal(squash, image_transform(vit)(photo))


def test_a_model_around_the_vit_is_looked_through(vit):
    around = torch.nn.Module()
    around.vit = vit
    assert str(image_transform(around)) == str(image_transform(vit))


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
            with pytest.warns(UserWarning, match="image 'class1/photo.png' cannot be read and is skipped") as told:
                list(loader), list(loader)
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
    (lambda file, m: Image.new('L', (3000, 3000)).save(file) or m.setattr(Image, 'MAX_IMAGE_PIXELS', 4_000_000),
     'decompression bomb'),
], ids=['dangling link', 'text', 'far too many pixels'])
def test_whatever_hinders_reading_names_the_file(photos, vit, monkeypatch, spoil, says):
    loader = image_loader(photos, vit)
    spoil(photos/'class1'/'photo.png', monkeypatch)
    with pytest.raises(ValueError, match=f"cannot read image 'class1/photo.png'.*{says}"): list(loader)
    with pytest.warns(UserWarning, match='is skipped'):
        labels = torch.cat([y for _, y in image_loader(photos, vit, unreadable='skip')])
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
    with pytest.raises(ValueError, match="class map 'names.csv' is no .txt file"):
        image_loader(root, vit, split='val', class_map='names.csv')


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
