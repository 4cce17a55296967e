"Terms and importance of heads, against the trace and against plain attention."
import pytest
import torch
from drawn import adaptive, rendered, small

from adaptive_tokens.look.heads import head_importance, head_scores, head_terms
from adaptive_tokens.models.method import Method
from adaptive_tokens.models.model import adapt, calibrate


@pytest.mark.parametrize('size', [(64, 64), (32, 96)])
def test_terms_of_the_heads_add_up_to_the_score(size):
    model, image = adaptive(small(img_size=size), (.06, .07, .08)), torch.randn(3, *size)
    with torch.no_grad(): _, trace = model(image[None], return_trace=True)
    terms = head_terms(model, image)
    assert list(terms) == [1, 2, 3] and [theta for _, theta in terms.values()] == pytest.approx([.06, .07, .08])
    for l, (by_head, _) in terms.items():
        assert by_head.shape == (len(image[0]) * len(image[0, 0]) // 256, model.vit.blocks[0].attn.num_heads)
        assert torch.allclose(by_head.sum(1), trace.score[0, l - 1, 1:], atol=1e-6, equal_nan=True)


@pytest.mark.parametrize('theta', [(-1., -1., -1.), (9., 9., 9.), (.0625, 9., 9.)])
@pytest.mark.parametrize('size', [(64, 64), (32, 96)])
def test_a_panel_per_stage_and_head_and_one_for_the_sum(theta, size):
    vit = small(img_size=size)
    model, heads = adaptive(vit, theta), vit.blocks[0].attn.num_heads
    fig = rendered(head_scores(model.train(), torch.randn(3, *size), title='$a $b'))
    maps, bars = [ax for ax in fig.axes if ax.images], [ax for ax in fig.axes if ax.get_label() == '<colorbar>']
    assert model.training
    assert len(maps) == 3 * (heads + 1)
    assert len(bars) == 2 * 3
    assert all('score' in ax.get_ylabel() for ax in bars)
    assert maps[0].images[0].get_array().shape == tuple(vit.patch_embed.grid_size)
    sums = [ax.get_title() for ax in maps if ax.get_title().startswith('sum')]
    patches = vit.patch_embed.num_patches
    if theta[0] < 0: assert [s.split()[1] for s in sums] == [str(patches)] * 3
    if theta[1] > 1: assert [s.split()[1] for s in sums[1:]] == ['0', '0']


def test_models_without_such_terms_are_named():
    vit = small()
    class Whole(Method): name = 'whole'
    image = torch.randn(3, 64, 64)
    with pytest.raises(ValueError, match='whole has no score'): head_scores(adapt(vit, Whole(vit)), image)
    with pytest.raises(ValueError, match='has no score'): head_scores(vit, image)
    with pytest.raises(ValueError, match='at budget 1 nothing is scored'):
        head_scores(adapt(vit, 'as-vit', budget=1), image)
    with pytest.raises(ValueError, match='images have shape'): head_scores(adaptive(vit, (0, 0, 0)), image[None])
    with pytest.raises(ValueError, match='NaN'): head_scores(adaptive(vit, (0, 0, 0)), image / 0)


def test_importance_of_heads_is_the_mean_over_patches_that_are_left():
    "Against plain attention, image by image, on the patches that the trace calls active."
    model, images = adaptive(small(), (0, 0, 0)), torch.randn(3, 3, 64, 64)
    calibrate(model, [images], .6)
    with torch.no_grad(): _, trace = model(images, return_trace=True)
    axes = rendered(head_importance(model.train(), images, title='$a $b')).axes
    H, left = model.vit.blocks[0].attn.num_heads, trace.active[..., 1:]
    wanted, model = [[] for _ in range(4)], model.eval()
    assert 0 < left[:, 3].sum() < left[:, 0].sum()
    with torch.no_grad():
        for i in range(3):
            x = model.vit.pos_drop(model.vit._pos_embed(model.vit.patch_embed(images[i:i + 1])))
            for l, block in enumerate(model.vit.blocks):
                x = x[:, trace.active[i, l][trace.active[i, l - 1]]] if l else x
                q, k, v = block.attn.qkv(block.norm1(x)).reshape(1, -1, 3, H, x.shape[2] // H).permute(2, 0, 3, 1, 4)
                norm = ((q @ k.transpose(-1, -2) * q.shape[-1]**-.5).softmax(-1) @ v).norm(dim=-1)[0, :, 1:]
                wanted[l].append(norm / norm.sum(0))
                x = block(x)
    wanted = [100 * torch.cat(w, 1).mean(1) for w in wanted]
    shown = torch.tensor([float(t.get_text()) for t in axes[0].texts]).view(4, H)
    assert (shown - torch.stack(wanted)).abs().max() <= .501
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ['scores 1', 'scores 2', 'scores 3', '4']
    assert axes[0].get_xlabel() == f'head (alike: {100 / H:.0f} each)'


def test_importance_without_stages_without_patches_and_without_heads_that_count():
    vit, images = small(), torch.randn(2, 3, 64, 64)
    H = vit.blocks[0].attn.num_heads
    assert len(rendered(head_importance(adapt(vit, 'as-vit', budget=1), images)).axes[0].texts) == 4 * H
    fig = rendered(head_importance(adaptive(vit, (9., 9., 9.)), images))  # nobody is left after block 1
    assert len(fig.axes[0].texts) == H
    with pytest.raises(ValueError, match='adavit has no score'): head_importance(adapt(vit, 'adavit', .6), images)
    with pytest.raises(ValueError, match='images have shape'): head_importance(adaptive(vit, (0, 0, 0)), images[0])
    in_half = head_importance(adaptive(small(), (-1., -1., -1.)).bfloat16(), images.bfloat16())
    whole = head_importance(adaptive(small(), (-1., -1., -1.)), images)
    pairs = zip(in_half.axes[0].texts, whole.axes[0].texts)
    assert all(abs(int(a.get_text()) - int(b.get_text())) <= 1 for a, b in pairs)
