"Numbers are checked before a run, printed in full, and come back as they were printed."
from dataclasses import asdict

import pytest
import timm
from hypothesis import given, settings, strategies as st

from adaptive_tokens.models.method import known_methods
from adaptive_tokens.models.model import adapt
from adaptive_tokens.training.recipe import RECIPES, Recipe, load_recipe
from adaptive_tokens.training.rules import RULES


@pytest.mark.parametrize('name', RECIPES)
def test_published_recipes_name_what_exists_and_can_be_built(name):
    recipe = RECIPES[name]
    assert timm.is_model(recipe.backbone)
    assert recipe.method in known_methods() and recipe.method == name.split('/')[0]
    vit = timm.create_model(recipe.backbone, drop_path_rate=recipe.drop_path)
    adapt(vit, recipe.method, recipe.budget, **recipe.options)


@pytest.mark.parametrize('name', RECIPES)
def test_a_printed_recipe_reads_back_equal(name, tmp_path):
    (tmp_path/'r.yaml').write_text(str(RECIPES[name]))
    assert load_recipe(tmp_path/'r.yaml') == RECIPES[name]
    assert all(f'{field}:' in str(RECIPES[name]) for field in asdict(Recipe()))


numbers = st.fixed_dictionaries(dict(
    epochs=st.integers(1, 500), lr=st.floats(1e-8, 10), warmup=st.floats(0, .99), ema=st.floats(0, .99999),
    weight_decay=st.floats(0, 1), layer_decay=st.floats(.1, 1), mixup=st.floats(0, 2)))


@settings(deadline=None, max_examples=30)
@given(numbers)
def test_changes_win_over_a_file_and_a_file_over_its_base(tmp_path_factory, changes):
    file = tmp_path_factory.mktemp('r')/'r.yaml'
    file.write_text('base: as-vit/deit-s-0.65\n' + ''.join(f'{k}: {v!r}\n' for k, v in changes.items()))
    recipe, base = load_recipe(file, lr=.5, options=dict(T=7.)), asdict(RECIPES['as-vit/deit-s-0.65'])
    assert asdict(recipe) == {**base, **changes, 'lr': .5, 'options': dict(budget_weight=9.2, T=7.)}


@pytest.mark.parametrize('changes, match', [
    (dict(epochs=0), 'epochs is 0; it must be a whole number'), (dict(epochs=1.5), 'epochs is 1.5'),
    (dict(epochs=True), 'epochs is True'), (dict(lr=0), 'lr is 0; it must be above 0'),
    (dict(lr=float('inf')), 'lr is inf'), (dict(lr='fast'), "lr is 'fast'"),
    (dict(floor=2), 'floor is 2; it must be from 0 to 1'), (dict(layer_decay=0), 'layer_decay is 0'),
    (dict(accumulate=0), 'accumulate is 0'), (dict(ema=1), 'ema is 1; it must be from 0 .none. to below 1'),
    (dict(mixup=-1), 'mixup is -1'), (dict(cutmix=-1), 'cutmix is -1'),
    (dict(erase=2), 'erase is 2; it must be a probability'), (dict(drop_path=1), 'drop_path is 1'),
    (dict(clip=-1), 'clip is -1'), (dict(batch_size=0), 'batch_size is 0'),
    (dict(method='as-vot'), "'as-vot'; nearest: as-vit"), (dict(budget=0), 'budget is 0'),
    (dict(opt='adamv'), "'adamv'"), (dict(budget='half'), "budget is 'half'; it must be a number"),
    (dict(options=None), 'options is None; it must be a mapping'),
    (dict(batch_size=100.), 'batch_size is 100.0; it must be a whole number'),
    (dict(epoch=3), "no field of a recipe 'epoch'; nearest: epochs")])
def test_numbers_that_cannot_work_are_named(changes, match):
    with pytest.raises(ValueError, match=match): load_recipe(**changes)


def test_every_number_has_a_rule():
    numbers = {k for k, v in asdict(Recipe()).items() if isinstance(v, (int, float))}
    assert set(RULES) == numbers - {'budget'}


@pytest.mark.parametrize('text, error, match', [
    ('lr: [', ValueError, 'is no yaml file'), ('just words', ValueError, 'holds no fields'),
    ('', ValueError, 'holds no fields'), ('base: nothing\n', ValueError, "no recipe 'nothing'"),
    ('lrr: 1\n', ValueError, "'lrr'; nearest: lr"), (None, FileNotFoundError, 'no recipe file')])
def test_files_that_hold_no_recipe_are_named(text, error, match, tmp_path):
    file = tmp_path/'mine.yaml'
    if text is not None: file.write_text(text)
    with pytest.raises(error, match=match): load_recipe(file)


def test_numbers_among_the_options_of_a_file_are_numbers(tmp_path):
    (tmp_path/'mine.yaml').write_text('method: as-vit\noptions:\n  T: 1e4\n  fold: merge\n  places: [2, 3]\n')
    assert load_recipe(tmp_path/'mine.yaml').options == dict(T=1e4, fold='merge', places=[2, 3])


def test_a_file_without_a_base_changes_the_plain_recipe(tmp_path):
    (tmp_path/'mine.yaml').write_text('lr: 3e-4\n')
    plain = Recipe(epochs=7, budget=.5)
    assert load_recipe(tmp_path/'mine.yaml', plain) == Recipe(epochs=7, budget=.5, lr=3e-4)
    assert load_recipe(None, plain) == plain


def test_another_method_does_not_inherit_the_options_of_the_old_one():
    assert load_recipe('as-vit/deit-s-0.65', method='a-vit').options == {}
    assert load_recipe('as-vit/deit-s-0.65', method='a-vit', options=dict(gamma=3.)).options == dict(gamma=3.)
    same = load_recipe('as-vit/deit-s-0.65', method='as-vit', options=dict(T=3.))
    assert same.options == dict(budget_weight=9.2, T=3.)
