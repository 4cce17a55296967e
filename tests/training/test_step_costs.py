"Time and memory of a step."
import copy

import torch
from small_runs import CLASSES, tiny

from adaptive_tokens.models.model import adapt, calibrate
from adaptive_tokens.training.step_costs import step_costs


def test_memory_of_a_masked_step_is_close_to_a_dense_one():
    vit = tiny(img_size=64, depth=6)
    adaptive = {name: adapt(copy.deepcopy(vit), name, budget=.7) for name in ('as-vit', 'a-vit', 'adavit')}
    models = dict(dense=vit, **adaptive)
    x = torch.randn(8, 3, 64, 64)
    calibrate(models['as-vit'], [x])
    rows = {row['name']: row for row in step_costs(models, x, torch.arange(8) % CLASSES, repeats=1)}
    assert rows['dense']['memory'] == rows['dense']['time'] == 1
    # A width of 16 is narrow; DeiT-S is measured by tools/measure_training.py.
    assert all(row['memory'] < 1.6 and row['time'] > 0 for row in rows.values())
