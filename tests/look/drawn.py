"Models and traces that tests of figures draw, and a figure that was drawn."
import io

import matplotlib.pyplot as plt
import timm
import torch

from adaptive_tokens.models.model import adapt
from adaptive_tokens.models.trace import Trace


def trace_of(active):
    "A trace whose active tokens are given [B, L, N]"
    no_score = torch.full(active.shape, float('nan'))
    return Trace(active, no_score, active[:, :, :2], active[:, :, :2], active.sum((1, 2)).float())


def kept(patches, counts, prefix=1, B=1):
    "A trace that keeps the first counts[l] patches in block l"
    on = torch.arange(patches)[None] < torch.tensor(counts)[:, None]
    return trace_of(torch.cat([torch.ones(len(counts), prefix, dtype=torch.bool), on], 1).expand(B, -1, -1))


def rendered(fig):
    "The figure drawn, closed and not shown twice"
    assert plt.get_fignums() == []
    fig.savefig(file := io.BytesIO())
    assert file.tell() > 1000
    return fig


def small(**changes):
    torch.manual_seed(0)
    return timm.create_model('test_vit', **{**dict(img_size=64, num_classes=10, depth=4), **changes}).eval()


def adaptive(vit, theta): return adapt(vit, 'as-vit', places=(1, 2, 3), theta=theta).eval()
