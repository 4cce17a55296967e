"Parts of a state on the disk."
import json

import torch

from adaptive_tokens.training.state import newest_state, remove_leftovers, save_state, states


def test_what_an_interruption_left_half_written_is_swept_away(tmp_path):
    for name in ('.last.abc', '.best.x', '.log.jsonl.q', 'states/.half'): (tmp_path/name).mkdir(parents=True)
    (tmp_path/'.mine').mkdir()
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.rglob('*')} == {'.mine', 'states'}


def test_numbers_beside_the_tensors_come_back(tmp_path):
    save_state(tmp_path, 3, dict(model=dict(w=torch.arange(3.))), dict(rows=[dict(loss=.1)], moving=dict(tau=1.5)))
    tensors, facts = newest_state(tmp_path)
    assert facts['step'] == 3 and facts['moving'] == dict(tau=1.5) and tensors['model']['w'].tolist() == [0, 1, 2]
    assert json.loads((states(tmp_path)[0]/'state.json').read_text())['rows'] == [dict(loss=.1)]
