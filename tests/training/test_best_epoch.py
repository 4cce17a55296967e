"Which epoch is best."
import pytest

from adaptive_tokens.training.resume import best_epoch


@pytest.mark.parametrize('rows, budget, best', [
    ([(80, .66), (90, .75)], .65, 0), ([(80, .75), (90, .7)], .65, 1), ([(80, .64), (90, .65), (90, .65)], .65, 1),
    ([(80, 1), (70, 1)], None, 0), ([(90, .9), (70, .65), (60, .65)], .65, 1)])
def test_only_epochs_within_two_percent_of_the_budget_compete(rows, budget, best):
    assert best_epoch([dict(top1=t, macs_share=s) for t, s in rows], budget) == best


def test_without_validation_the_last_epoch_is_best(): assert best_epoch([dict(epoch=1), dict(epoch=2)], .65) == 1
