"What a model card tells."
import timm
import torch
from small_runs import loader, pictures, quick, sparse, tiny
from torch.utils.data import DataLoader, TensorDataset

from adaptive_tokens.training.evaluate import evaluate
from adaptive_tokens.training.fit import fit


def test_the_card_says_data_recipe_versions_result_and_licence(tmp_path):
    model = sparse()
    fit(model, loader(), loader(shuffle=False), epochs=2, teacher=tiny(), out=tmp_path, **quick)
    card = (tmp_path/'last'/'README.md').read_text()
    said = 'as-vit, budget 0.7', 'TensorDataset, 40 images', 'epochs: 2', 'licence: ', 'seed 0'
    for part in (*said, torch.__version__, timm.__version__): assert part in card, part
    result = evaluate(model, loader(shuffle=False))
    assert f"| this model | {result['top1']:.2f} | 40 |" in card
    assert '| teacher, dense |' in card and '| this model, every token |' in card
    assert (tmp_path/'best'/'README.md').exists()
    from huggingface_hub import ModelCard
    assert ModelCard(card).data.library_name == 'adaptive_tokens'


def test_a_card_tells_the_method_budget_and_batch_that_were_used(tmp_path):
    fit(sparse(), loader(batch=20), out=tmp_path, **quick)
    card = (tmp_path/'last'/'README.md').read_text()
    assert 'method: as-vit' in card and 'budget: 0.7' in card
    assert 'batches of 20, 1 process' in card and 'validated on nothing' in card


def test_a_card_tells_what_part_of_the_data_was_used(tmp_path):
    x, y = pictures()
    part = DataLoader(torch.utils.data.Subset(TensorDataset(x, y), range(24)), 8)
    fit(tiny(), part, out=tmp_path, **quick)
    assert 'Trained on TensorDataset, 24 of 40 images' in (tmp_path/'last'/'README.md').read_text()
