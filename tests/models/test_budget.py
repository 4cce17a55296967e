"Knobs that meet a budget: intervals are halved, errors name what is least."
import pytest
import torch

from adaptive_tokens.models.budget import bisect, check_budget, halve, largest_within


def test_largest_is_the_largest():
    assert largest_within(lambda q: q**3, .5) == pytest.approx(.5**(1/3), abs=1e-9)
    assert largest_within(lambda q: .4, .5) == 1.


@pytest.mark.parametrize('cost', [lambda q: q, lambda q: q**4, lambda q: round(10 * q) / 10, lambda q: .1 + .9 * q])
@pytest.mark.parametrize('budget', [.11, .5, .999])
def test_largest_is_within_the_budget_and_no_more_would_be(cost, budget):
    q = largest_within(cost, budget)
    assert cost(q) <= budget and (q == 1 or cost(q + 1e-6) >= budget - 1e-9)


def test_a_budget_that_cannot_be_met_is_refused():
    with pytest.raises(ValueError, match=r'budget 0.2 is out of reach: at its cheapest this method spends 0.300'):
        largest_within(lambda q: .3 + .7 * q, .2)


@pytest.mark.parametrize('budget', [0, -1, 1.01, float('nan'), float('inf')])
def test_what_is_no_share_is_refused(budget):
    with pytest.raises(ValueError, match=f'budget is {budget}; it is the share'): check_budget(budget)


def test_a_budget_is_a_number():
    assert [type(check_budget(budget)) for budget in (1, .5)] == [float, float]


def test_an_interval_is_halved():
    low, high = halve(lambda x: x <= .3, 0., 1., 10)
    assert low <= .3 < high and high - low == 2**-10
    assert halve(lambda x: x <= .3, 0., 1., 0) == (0., 1.)


def test_many_intervals_are_halved_at_once():
    ends = torch.tensor([.1, .5, .9])
    low, high = halve(lambda x: x <= ends, torch.zeros(3), torch.ones(3), 20)
    torch.testing.assert_close(low, ends, atol=2e-6, rtol=0)
    assert (low <= ends).all() and (high > ends).all()
    for i, end in enumerate(ends.tolist()):
        one = halve(lambda x, end=end: x <= end, torch.tensor(0.), torch.tensor(1.), 20)
        assert one == (low[i], high[i])


@pytest.mark.parametrize('falls', [True, False])
def test_bisection_comes_close_in_few_looks(falls):
    seen = []

    def share_at(knob):
        seen.append(knob)
        return 1 - knob / 10 if falls else knob / 10
    spent, knob = bisect(share_at, 0., 10., .35, falls)
    assert abs(spent / .35 - 1) < .001 and spent == share_at(knob) and len(seen) <= 17
    assert abs(seen[-2] - knob) < 1e-9  # it stopped at the first that was close enough


def test_bisection_over_steps_keeps_the_closest():
    looks = []

    def steps(knob):
        looks.append(knob)
        return .9 if knob < 3 else .2
    assert bisect(steps, 0., 10., .6)[0] == .9 and len(looks) == 16
    assert bisect(steps, 0., 10., .5)[0] == .2
