"Operators by kind of work, and shares of the time."
import pytest
import torch

from adaptive_tokens.measure import profile
from adaptive_tokens.measure.profile import kind_of, where_time_goes


@pytest.mark.parametrize('name, kind', [
    ('aten::addmm', 'matrix products'), ('aten::mkldnn_convolution', 'matrix products'),
    ('aten::_scaled_dot_product_flash_attention_for_cpu', 'attention'), ('aten::_softmax', 'attention'),
    ('_flash_attn_varlen_forward', 'attention'), ('aten::index_select', 'moving rows'), ('aten::cat', 'moving rows'),
    ('aten::gt', 'deciding'), ('aten::cumsum', 'deciding'), ('aten::gelu', 'norms, activations, sums'),
    ('aten::native_layer_norm', 'norms, activations, sums'), ('aten::exp', 'norms, activations, sums'),
    ('aten::sum', 'norms, activations, sums'), ('triton_poi_fused_addmm_gelu_0', 'fused by torch.compile'),
    ('aten::view', 'other'), ('aten::expand', 'other')])
def test_operators_by_kind_of_work(name, kind): assert kind_of(name) == kind


def test_where_time_goes(models, images):
    dense, ours = (where_time_goes(model, images, calls=2) for model in models.values())
    for told in (dense, ours):
        assert sum(told['shares'].values()) == pytest.approx(1) and min(told['shares'].values()) >= 0
        assert set(told) == {'shares', 'operators'}
    assert dense['shares']['matrix products'] > 0 and ours['operators'] > dense['operators']


def test_the_clock_does_not_run_under_the_profiler(monkeypatch, models, images):
    under = []
    def seconds(model, x):
        model(x)
        under.append(torch.autograd._profiler_enabled())
        return 1.
    monkeypatch.setattr(profile, 'seconds', seconds)
    where_time_goes(models['ours'], images, calls=2)
    assert under == [False, False, True, True]


@pytest.mark.gpu
def test_where_time_goes_on_cuda(models, images):
    for model in models.values():
        told = where_time_goes(model.cuda(), images.cuda())  # device time and wall time are of different calls
        assert 0 < told['busy'] < 1.1 and sum(told['shares'].values()) == pytest.approx(1)
    masked = models['ours']
    masked.execution = 'masked'
    assert told['waits'] > where_time_goes(masked, images.cuda())['waits']
