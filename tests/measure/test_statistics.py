"Arithmetic on measurements that are written by hand, so no test depends on how fast this machine is."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from adaptive_tokens.measure.statistics import Measured, compare, paired, quartiles


def test_quartiles_by_hand():
    assert quartiles([3, 1, 2]) == (1.5, 2, 2.5)
    assert quartiles([4.]) == (4, 4, 4)


def test_compare_by_hand():
    dense = Measured(torch.tensor([10e9, 10e9]).double(), torch.tensor([10., 12., 20.]), torch.tensor([1., 3.]), 50.)
    own = Measured(torch.tensor([4e9, 8e9]).double(), torch.tensor([5., 8., 8.]), torch.tensor([1., 2.]), 40., 'as-vit')
    row = compare(own, dense)
    assert (row['method'], row['n'], row['top1']) == ('as-vit', 2, 40.)
    assert [row[k] for k in ('gmacs', 'gmacs_std', 'gmacs_min', 'gmacs_max')] == [6, 2, 4, 8]
    assert row['macs_share'] == pytest.approx(.6) and row['macs_ratio'] == pytest.approx(10 / 6)
    assert row['images_per_s'] == pytest.approx(2 / 8)
    assert row['images_per_s_iqr'] == pytest.approx([2 / 8, (2/5 + 2/8) / 2])
    assert row['speedup'] == pytest.approx(2) and row['speedup_iqr'] == pytest.approx([1.75, 2.25])  # of 2, 1.5, 2.5
    assert row['latency_ms'] == pytest.approx(1500) and row['latency_ms_iqr'] == pytest.approx([1250, 1750])
    assert row['latency_speedup'] == pytest.approx(1.25)  # of 1 and 1.5
    assert row['realised'] == pytest.approx(2 * .6)
    assert row['saved_time_share'] == pytest.approx((1 - 1/2) / (1 - .6))


def test_a_saving_of_nothing_has_no_share():
    dense = Measured(torch.ones(2).double(), torch.tensor([1., 2.]), torch.tensor([1.]))
    row = compare(dense, dense)
    assert row['saved_time_share'] is None and row['speedup'] == row['realised'] == row['macs_ratio'] == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(.1, 10), st.floats(.01, 100)), min_size=1, max_size=9), st.floats(.5, 3))
def test_a_machine_that_slows_both_down_alike_changes_no_ratio(passes, s):
    own = torch.tensor([t * slow for t, slow in passes], dtype=torch.float64)
    row = compare(Measured(torch.ones(3), own, own), Measured(torch.ones(3) * 2, own * s, own * s))
    assert row['speedup'] == pytest.approx(s) and row['speedup_iqr'] == pytest.approx([s, s])
    assert row['latency_speedup'] == pytest.approx(s) and row['realised'] == pytest.approx(s / 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.integers(0, 5))
def test_paired_against_a_slow_bootstrap(pairs, seed):
    right, other = (torch.tensor(o) for o in zip(*pairs))
    d = [100 * (a - b) for a, b in pairs]
    said = paired(right, other, draws=200, seed=seed)
    generator, n = torch.Generator().manual_seed(seed), len(d)
    means = sorted(sum(d[i] for i in torch.randint(n, (n,), generator=generator).tolist()) / n for _ in range(200))
    assert said['mean'] == pytest.approx(sum(d) / n)
    low, high = means[4] + .975 * (means[5] - means[4]), means[194] + .025 * (means[195] - means[194])
    assert said['interval'] == pytest.approx([low, high])
    assert said == paired(right, other, draws=200, seed=seed) and said['interval'][0] <= said['interval'][1]
    back = paired(other, right, draws=200, seed=seed)
    assert back['mean'] == -said['mean'] and back['error'] == pytest.approx(said['error'])


def test_pairs_by_hand_and_no_pairs():
    right = torch.tensor([True, True, False, True])
    assert paired(right, right) == dict(mean=0, error=0, interval=[0, 0])
    assert paired(right, ~right)['mean'] == 50 and paired(right[:1], ~right[:1])['error'] == 0
    with pytest.raises(ValueError, match='answers to 4 and to 3 images'): paired(right, right[:3])
