"Backbones and images by a word: a sample is drawn, classes are counted, and what cannot be read is named."
import tarfile

import pytest
import torch

from adaptive_tokens.images.by_name import (check_reading, class_folders, classes_in, find_images, gather,
                                            make_backbone, with_fitting_labels)
from adaptive_tokens.images.digits import digits_vit


@pytest.fixture(scope='module')
def vit(): return digits_vit(img_size=32, embed_dim=32, depth=2).eval()


def test_images_to_calibrate_on_are_not_those_measured(vit, photos):
    def drawn(n, skip): return find_images(str(photos/'train'), vit, 'validation', n, skip=skip).dataset.indices
    measured, others = drawn(5, 0), drawn(9, 5)
    assert sorted(measured + others) == list(range(8)) and len(measured) == 5


def test_digits_come_at_the_size_of_the_backbone(vit):
    images, labels = next(iter(find_images('digits', vit, 'validation', 6, batch_size=4)))
    assert images.shape == (4, 3, 32, 32) and labels.shape == (4,)
    first, second = (next(iter(find_images('digits', vit, split, 6)))[0] for split in ('validation', 'test'))
    assert torch.equal(first, second)  # every other name than train is the test half
    assert not torch.equal(first, next(iter(find_images('digits', vit, 'train', 6)))[0])


@pytest.mark.parametrize('form', ['folder', 'tar'])
def test_classes_are_folders_and_labels_must_fit_the_model(vit, photos, tmp_path, form):
    root = photos/'train'
    if form == 'tar':
        root = tmp_path/'photos.tar'
        with tarfile.open(root, 'w') as archive: archive.add(photos/'train', arcname='.')
    loader = find_images(str(root), vit, 'validation', 3)
    assert sorted(class_folders(loader).values()) == [0, 1] and classes_in(loader) == 2
    images, labels = with_fitting_labels(loader, 2)
    assert images.shape == (3, 3, 32, 32) and labels.shape == (3,)
    with pytest.warns(UserWarning, match='come in 2 classes and the model has 10'):
        assert with_fitting_labels(loader, 10)[1] is None


def test_digits_have_ten_classes_and_no_folders(vit):
    loader = find_images('digits', vit, 'validation', 6)
    assert classes_in(loader) == 10 and class_folders(loader) == {}
    assert with_fitting_labels(loader, 10)[1].shape == (6,)


def test_the_seed_decides_which_images_are_drawn(vit, photos):
    first, same, other = (find_images(str(photos/'train'), vit, 'validation', 4, seed=seed).dataset.indices
                          for seed in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize('name, pretrained, parts', [
    ('deit_tinny_patch16_224', False, ["'deit_tinny_patch16_224'", 'deit_tiny_patch16_224']),
    ('digits', True, ["'digits' has no pretrained weights"]), ('test_resnet', False, ['ResNet', 'What works'])])
def test_backbones_that_cannot_be(name, pretrained, parts):
    with pytest.raises((ValueError, NotImplementedError)) as refused: make_backbone(name, pretrained)
    assert all(part in str(refused.value) for part in parts)


def test_a_backbone_is_in_evaluation_mode():
    assert not make_backbone('digits', depth=2).training and len(make_backbone('digits', depth=2).blocks) == 2


def test_models_that_want_other_photographs_are_named(vit):
    other = digits_vit(img_size=32, embed_dim=32, depth=2)
    check_reading({'a': vit, 'b': other})
    other.pretrained_cfg = dict(vit.pretrained_cfg, mean=(.1, .2, .3))
    with pytest.raises(ValueError, match=r'a wants images of mean .*, b of \(0.1, 0.2, 0.3\): look at them one by one'):
        check_reading({'a': vit, 'b': other})


def test_gather_knows_what_is_no_label():
    images = torch.zeros(3, 3, 8, 8)
    assert gather(images)[1] is None and gather([(images, torch.full((3,), -1))])[1] is None
    assert gather([(images, torch.tensor([0, 1, 2]))])[1].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match='images are a str'): gather('photos/')
    with pytest.raises(ValueError, match='there are no images'): gather(images[:0])
