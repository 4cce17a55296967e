"In which order models are timed, and what the clock waits for."
import pytest
import torch

from adaptive_tokens.measure import timing
from adaptive_tokens.measure.timing import seconds, take_turns, thread_count


class Recorded:
    "Stands in for a model; notes each call"
    def __init__(self, name, notes): self.name, self.notes = name, notes
    def __call__(self, x): self.notes.append((self.name, int(x)))


def test_models_take_turns_and_each_comes_first_as_often(monkeypatch):
    notes, timed = [], []
    models = {name: Recorded(name, notes) for name in 'abc'}
    monkeypatch.setattr(timing, 'seconds', lambda model, x: timed.append((model.name, int(x))) or float(len(timed)))
    spent = take_turns(models, [torch.tensor(0), torch.tensor(1)], 2)
    assert notes == [(name, b) for name in 'abc' for b in (0, 1)]  # the warm-up, before the first timed call
    order = [''.join(name for name, _ in timed[i:i + 3]) for i in range(0, 12, 3)]
    assert order == ['abc', 'cba', 'cba', 'abc'] and [b for _, b in timed] == [0]*3 + [1]*3 + [0]*3 + [1]*3
    assert spent['a'].tolist() == [[1, 6], [9, 10]] and spent['b'].tolist() == [[2, 5], [8, 11]]


def test_seconds_waits_before_and_after(monkeypatch):
    notes = []
    monkeypatch.setattr(timing, 'synchronize', lambda device: notes.append('wait'))
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: notes.append('clock') or float(len(notes)))
    assert seconds(lambda x: notes.append('call'), torch.zeros(1)) == 3
    assert notes == ['wait', 'clock', 'call', 'wait', 'clock']


def test_another_number_of_threads_only_inside():
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    with pytest.raises(KeyError), thread_count(other):
        assert torch.get_num_threads() == other
        raise KeyError
    assert torch.get_num_threads() == before
    with thread_count(None): assert torch.get_num_threads() == before
