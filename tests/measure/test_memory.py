"What a call holds at its fullest moment, counted by hand."
import pytest
import torch

from adaptive_tokens.measure.memory import peak_memory


def test_memory_of_a_call_by_hand(vit):
    x = torch.zeros(2**18)  # 1 MiB
    def chain(x):
        for _ in range(5): x = x + 1
        return x
    assert peak_memory(chain, x) == 2 * 2**20  # the old one and the new
    assert peak_memory(lambda x: x.view(-1, 2).mul_(1), x) == 0  # views and work in place make nothing new
    assert peak_memory(lambda x: [x + i for i in range(4)], x) == 4 * 2**20
    with torch.inference_mode(): few, many = (peak_memory(vit, torch.zeros(n, 3, 64, 64)) for n in (2, 8))
    assert many == pytest.approx(4 * few, rel=.1)
