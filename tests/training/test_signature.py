"What a run is told of its data, and what makes it another run."
import pytest
import torch
from small_runs import loader, pictures, sparse, tiny
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from adaptive_tokens.training.recipe import Recipe
from adaptive_tokens.training.signature import check_signature, describe_data, run_signature


class Stream(IterableDataset):
    root = '/somewhere/photos'
    def __iter__(self): return iter(zip(*pictures()))


@pytest.mark.parametrize('data, words', [
    (None, 'nothing'), ([pictures()], 'batches from memory'), (loader(), 'TensorDataset, 40 images'),
    (DataLoader(Subset(TensorDataset(*pictures()), range(24)), 8), 'TensorDataset, 24 of 40 images'),
    (DataLoader(Stream(), 8), "Stream 'photos'")])
def test_data_is_described_as_far_as_it_is_known(data, words): assert describe_data(data) == words


def test_a_signature_names_the_first_thing_that_differs(tmp_path):
    mine = run_signature(sparse(), Recipe(), seed=0)
    check_signature(mine, dict(mine, more=1), tmp_path)
    with pytest.raises(ValueError, match='whose seed is 1, and here it is 0'):
        check_signature(mine, dict(mine, seed=1), tmp_path)
    dense = run_signature(tiny(), Recipe(), seed=0)
    assert dense['method'] == 'dense' and mine['method']['name'] == 'as-vit' and 'timm' not in mine
    with pytest.raises(ValueError, match='whose method is '): check_signature(dense, mine, tmp_path)


def test_a_signature_has_no_tensors_or_tuples_left():
    options = run_signature(sparse(theta=(.1, .2)), Recipe(), seed=0)['method']
    assert options['places'] == [1, 2] and not any(isinstance(value, torch.Tensor) for value in options.values())
