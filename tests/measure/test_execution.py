"Which of two exact forms a model takes, by seconds that go in by hand."
import pytest
import torch
from small_models import adaptive, quick

from adaptive_tokens.measure import timing
from adaptive_tokens.measure.benchmark import benchmark
from adaptive_tokens.measure.execution import choose_execution
from adaptive_tokens.measure.result import Benchmark
from adaptive_tokens.models.model import calibrate


def clock(model, cost):
    "Seconds as given for each form and batch size, one after the other; the call is made, too"
    told = {key: iter(values) for key, values in cost.items()}
    def seconds(call, x):
        call(x)
        return next(told[model.execution, len(x)])
    return seconds


def test_the_faster_form_is_taken_at_each_size(monkeypatch, vit, images):
    model = adaptive(vit)
    monkeypatch.setattr(timing, 'seconds', clock(model, {('packed', 1): [3., 3.3, 3.6], ('masked', 1): [2., 3., 3.],
                                                        ('packed', 4): [5., 5., 5.], ('masked', 4): [9., 9., 9.]}))
    told = choose_execution(model, images, (4, 1), repeats=3)
    assert told[1] == dict(execution='masked', packed_over_masked=pytest.approx([1.15, 1.2, 1.35]))
    assert told[4] == dict(execution='packed', packed_over_masked=pytest.approx([5/9] * 3))
    assert model.preferred_execution == {1: 'masked', 4: 'packed'} and model.execution == 'auto'
    assert [model.packs(B) for B in (1, 3, 4, 100)] == [False, False, True, True]


def test_packed_where_quartiles_do_not_tell_them_apart(monkeypatch, vit, images):
    model = adaptive(vit)
    cost = {('packed', 2): [9., 9., 9., 9.], ('masked', 2): [9.1, 9.1, 2., 2.]}
    monkeypatch.setattr(timing, 'seconds', clock(model, cost))
    told = choose_execution(model, images, (2,), repeats=4)
    assert told[2]['packed_over_masked'][1] > 1 and model.preferred_execution == {2: 'packed'}


@pytest.mark.parametrize('faster', [{}, {1: 'masked'}, {1: 'packed', 4: 'masked'}])
def test_answers_do_not_depend_on_the_form_that_was_chosen(vit, images, faster):
    model = adaptive(vit)
    with torch.inference_mode():
        packed, trace = model(images, return_trace=True)
        model.preferred_execution = faster
        chosen, other = model(images, return_trace=True)
    torch.testing.assert_close(chosen, packed, atol=1e-5, rtol=1e-5)
    assert torch.equal(trace.active, other.active) and torch.equal(trace.macs, other.macs)


@pytest.mark.parametrize('execution', ['auto', 'masked'])
def test_a_model_that_fails_is_left_as_it_was(vit, images, execution):
    model = adaptive(vit)
    model.execution = execution
    with pytest.raises(ValueError, match='NaN'): choose_execution(model, images / 0, (1,))
    assert model.execution == execution and model.preferred_execution == {}


def test_control_c_is_no_measurement(monkeypatch, vit, images):
    model, count = adaptive(vit), []
    def seconds(call, x):
        if len(count) == 5: raise KeyboardInterrupt
        return count.append(call(x)) or 1.
    monkeypatch.setattr(timing, 'seconds', seconds)
    with pytest.raises(KeyboardInterrupt): choose_execution(model, images, (1,))
    assert model.execution == 'auto' and model.preferred_execution == {}


def test_a_choice_holds_for_its_budget_and_its_place(models, images):
    ours = models['ours']
    ours.preferred_execution = {1: 'masked'}
    made = benchmark(models, images, **quick)
    assert made.rows[1]['execution'] is None  # copies forget it, as they may run elsewhere
    assert ours.preferred_execution == {1: 'masked'}
    calibrate(ours, [images], .7)
    assert ours.preferred_execution == {}


def test_numbers_that_are_none_are_refused_in_both_forms(vit, images):
    model = adaptive(vit)
    model.preferred_execution = {1: 'masked'}
    with pytest.raises(ValueError, match='NaN'): model(images[:1] / 0)


@pytest.mark.parametrize('sizes, message', [
    ((), 'there are 7 images'), ((8,), r'sizes are \[8\] and there are 7 images'),
    ((0,), 'whole number from 1'), ((2.5,), 'whole number from 1')])
def test_sizes_that_cannot_be_timed(vit, images, sizes, message):
    with pytest.raises(ValueError, match=message): choose_execution(adaptive(vit), images, sizes)


def test_training_has_no_choice(vit, images):
    with pytest.raises(ValueError, match='in training'): choose_execution(adaptive(vit).train(), images, (1,))


def test_rows_say_which_form_was_taken(models, images, tmp_path):
    made = benchmark(models, images, **quick, fall_back=True)
    assert made.rows[0]['execution'] is None
    possible = {f'{form} at {size}' for form in ('packed', 'masked') for size in (1, 3)}
    assert set(made.rows[1]['execution'].split(', ')) <= possible
    assert 'form' in made.cells()[0] and 'form' not in benchmark(models, images, **quick).cells()[0]
    made.save(tmp_path/'b.json')
    assert Benchmark.load(tmp_path/'b.json') == made
