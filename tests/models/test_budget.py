"Knobs that meet a budget."
import pytest

from adaptive_tokens.models.budget import largest_within


def test_largest_is_the_largest():
    assert largest_within(lambda q: q**3, .5) == pytest.approx(.5**(1/3), abs=1e-9)
    assert largest_within(lambda q: .4, .5) == 1.
