"What cannot work is refused before the first step, by name."
import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import CLASSES, both, loader, make, pictures, quick, sparse, swin, tiny, weights
from torch.utils.data import DataLoader, TensorDataset

from adaptive_tokens.training import accelerator
from adaptive_tokens.training.checks import check_targets
from adaptive_tokens.training.evaluate import evaluate
from adaptive_tokens.training.fit import fit


class Watched(list):
    "Batches that count how often they were asked for"
    asked = 0
    def __iter__(self):
        self.asked += 1
        return super().__iter__()


@pytest.mark.parametrize('changes, match', [
    (dict(epochs=0), 'epochs is 0; it must be a whole number, at least 1'), (dict(epochs=1.5), 'epochs is 1.5'),
    (dict(lr=0.), 'lr is 0.0; it must be above 0'), (dict(lr=-1e-3), 'lr is -0.001'), (dict(lr=math.nan), 'lr is nan'),
    (dict(weight_decay=-1.), 'weight_decay is -1.0'), (dict(warmup=1.), 'warmup is 1.0; it must be a share'),
    (dict(clip=-1.), 'clip is -1.0'), (dict(label_smoothing=1.), 'label_smoothing is 1.0'),
    (dict(opt='adamv'), "no optimiser 'adamv'.*adam"), (dict(device='cdua'), "'cdua'.*cuda"),
    (dict(dtype='float61'), "'float61'.*float16"),
    (dict(dtype='float16'), 'float16 .* bfloat16 or float32 on the CPU'),
])
def test_numbers_and_names_are_refused_before_any_image_is_asked_for(changes, match, tmp_path):
    batches = Watched([pictures()])
    with pytest.raises(ValueError, match=match): fit(tiny(), batches, out=tmp_path/'out', **{**quick, **changes})
    assert batches.asked == 0 and not (tmp_path/'out').exists()


@both
@pytest.mark.parametrize('batches, match', [
    (lambda x, y: [], 'train_loader has no batch'),
    (lambda x, y: [(x, y + 1)], 'label 4 does not fit a head of 4 classes'),
    (lambda x, y: [(x, y - 1)], 'label -1 does not fit'),
    (lambda x, y: [(x[:, :1], y)], r'wants \[B, 3'),
    (lambda x, y: [(x[..., :16, :16], y)], 'images are 16x16'),
    (lambda x, y: [(x * math.nan, y)], 'NaN'),
    (lambda x, y: [(x, y.float())], r'targets are torch.float32 \[40\]'),
    (lambda x, y: [(x, torch.ones(40, 3))], r'targets are torch.float32 \[40, 3\]'),
])
def test_batches_that_do_not_fit_are_refused_before_the_first_step(kind, batches, match, tmp_path):
    model = make(kind)
    before = weights(model)
    with pytest.raises(ValueError, match=match): fit(model, batches(*pictures()), out=tmp_path/'out', **quick)
    assert torch.equal(weights(model), before) and not (tmp_path/'out').exists()


def test_a_loader_that_drops_its_only_batch_is_empty():
    data = DataLoader(TensorDataset(*pictures(8)), 16, drop_last=True)
    with pytest.raises(ValueError, match='train_loader has no batch.*drop_last'): fit(tiny(), data, **quick)
    with pytest.raises(ValueError, match='val_loader has no batch'): fit(tiny(), loader(), [], **quick)


def test_a_loader_without_length_is_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(zip(*pictures()))
    with pytest.raises(ValueError, match='train_loader has no length'): fit(tiny(), DataLoader(Stream(), 16), **quick)


def test_all_labels_are_looked_at_where_the_data_set_lists_them():
    data = TensorDataset(*pictures(80))
    data.targets = pictures(80)[1].tolist()[:-1] + [9]
    with pytest.raises(ValueError, match='label 9'): fit(tiny(), DataLoader(data, 8), **quick)


def test_batches_that_are_no_pairs_are_refused():
    x, y = pictures()
    with pytest.raises(ValueError, match='train_loader gives batches of type dict'):
        fit(tiny(), [dict(image=x, label=y)], **quick)
    with pytest.raises(ValueError, match='val_loader gives batches of type Tensor'): fit(tiny(), loader(), [x], **quick)


def test_soft_targets_cannot_be_validated_on():
    x, y = pictures()
    soft = loader(x, F.one_hot(y, CLASSES).float())
    with pytest.raises(ValueError, match=r'give class numbers \[B\]$'): fit(tiny(), loader(), soft, **quick)
    with pytest.raises(ValueError, match=r'give class numbers \[B\]$'): evaluate(tiny(), soft, device='cpu')


@pytest.mark.parametrize('targets', [torch.tensor([0, 4]), torch.tensor([-1, 0]), torch.tensor([.5, 1.]),
                                     torch.zeros(2, 5)])
def test_check_targets(targets):
    check_targets(targets.abs().long().clamp(max=3).reshape(-1), CLASSES)
    with pytest.raises(ValueError, match='head of 4 classes'): check_targets(targets, CLASSES)


@both
def test_a_teacher_of_other_classes_or_size_is_refused(kind, tmp_path):
    model = make(kind)
    with pytest.raises(ValueError, match='the teacher has 7 classes and the model 4'):
        fit(model, loader(), teacher=tiny(num_classes=7), out=tmp_path/'out', **quick)
    says = 'the teacher cannot take the images: images are 32x32; this backbone wants 64x64'
    with pytest.raises(ValueError, match=says):
        fit(model, loader(), teacher=tiny(img_size=64), out=tmp_path/'out', **quick)
    assert not (tmp_path/'out').exists()


def test_a_backbone_that_is_not_understood_is_refused_by_name():
    with pytest.raises(ValueError, match='SwinTransformer'):
        fit(swin(), loader(), **quick)


def test_a_model_that_could_not_be_saved_is_refused_before_it_is_trained(tmp_path):
    vit = tiny(qkv_bias=False)
    before = weights(vit)
    with pytest.raises(ValueError, match='does not rebuild this model'): fit(vit, loader(), out=tmp_path/'out', **quick)
    assert torch.equal(weights(vit), before) and not (tmp_path/'out').exists()


def test_a_recipe_for_another_method_or_budget_is_refused():
    with pytest.raises(ValueError, match="for 'as-vit' and the model is dense"):
        fit(tiny(), loader(), recipe='as-vit/deit-s-0.65')
    with pytest.raises(ValueError, match='budget 0.65 and the model has 0.7'):
        fit(sparse(), loader(), recipe='as-vit/deit-s-0.65')
    with pytest.raises(ValueError, match="no recipe 'as-vit/deit-s'; nearest"):
        fit(sparse(), loader(), recipe='as-vit/deit-s')
    with pytest.raises(ValueError, match='budget 0.5 and the model has 0.7'): fit(sparse(), loader(), budget=.5)
    with pytest.raises(ValueError, match='T=10000.0 and the model has 5.0'):
        fit(sparse(budget=.65, T=5.), loader(), recipe='as-vit/deit-s-0.65')


def test_an_out_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path/'file').write_text('')
    model = tiny()
    before = weights(model)
    for out in (tmp_path/'file', tmp_path/'file'/'below'):
        with pytest.raises(ValueError, match='cannot write to out=.*file'): fit(model, loader(), out=out, **quick)
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize('names, match', [('tensorbored', "no tracker 'tensorbored'; nearest: tensorboard"),
                                          (['wandb'], 'pip install wandb')])
def test_trackers_that_are_not_there_are_refused(names, match, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, 'get_available_trackers', lambda: [])
    with pytest.raises(ValueError, match=match): fit(tiny(), loader(), trackers=names, out=tmp_path, **quick)
