"""What do easy and hard images get from a model, and does a patch on the digit get more than one beside it?"""
import torch
from torch import Tensor

from ..backbones.backbone import backbone_of
from ..images.digits import ClutteredDigits, normalize
from ..images.drawing import LEVELS
from ..models.model import AdaptiveViT
from .figures import depth_map, gate_usage, token_counts, token_stages
from .heads import head_scores
from .page import Picture

__all__ = ['by_level', 'pictures']

HEAD = ['difficulty', 'images', 'top-1 %', 'GMACs', 'blocks per patch', 'on the digit', 'beside it']
MOST_STAGES = 6  # that are shown one by one
GATED = 90       # images whose gates are counted


@torch.no_grad()
def by_level(
    model:AdaptiveViT,      # Adaptive model in evaluation mode
    digits:ClutteredDigits, # Images that know their level and evidence
    batch_size:int,         # Images per call
) -> tuple[list, Tensor, Tensor]: # Cells of a table, mean tokens per block of each image, level of each image
    "What images of each level get from a model, and whether a patch on the digit gets more of it than one beside it"
    device, P, columns = next(model.parameters()).device, backbone_of(model).num_prefix_tokens, []
    for start in range(0, len(digits), batch_size):
        batch = digits.batch(range(start, min(start + batch_size, len(digits))))
        logits, trace = model(normalize(batch.images).to(device), return_trace=True)
        right = logits.argmax(1).cpu() == batch.labels
        blocks, on = trace.depth[:, P:].float().cpu(), batch.evidence
        on_digit = (blocks * on).sum(1) / on.sum(1)
        beside = (blocks * ~on).sum(1) / (~on).sum(1)
        gmacs, tokens = trace.macs.cpu() / 1e9, trace.counts.float().mean(1).cpu()
        columns.append(torch.stack([batch.levels, right, gmacs, blocks.mean(1), on_digit, beside, tokens]))
    level, right, gmacs, blocks, on_digit, beside, tokens = torch.cat(columns, 1)
    return _table_of_levels(level, right, gmacs, (blocks, on_digit, beside)), tokens, level


def _table_of_levels(level, right, gmacs, depths):
    "The head, and a row of cells for each level that there is"
    cells = [HEAD]
    for number, name in enumerate(LEVELS):
        here = level == number
        if not here.any(): continue
        accuracy, spent = f'{100 * right[here].mean():.1f}', f'{gmacs[here].mean():#.3g}'
        cells.append([name, int(here.sum()), accuracy, spent, *(f'{depth[here].mean():.1f}' for depth in depths)])
    return cells


def pictures(
    name:str,               # Name of the model
    model:AdaptiveViT,      # Adaptive model in evaluation mode
    digits:ClutteredDigits, # Test images
    tokens:Tensor,          # Mean tokens per block of each image, from `by_level`
    level:Tensor,           # Level of each image, from `by_level`
) -> list[Picture]:         # Pictures for a page
    "One image of each level in its stages, tokens by difficulty, and the votes of heads or gates where there are any"
    first = digits.batch(range(min(len(LEVELS), len(digits))))
    images = normalize(first.images).to(next(model.parameters()).device)
    with torch.no_grad(): logits, trace = model(images, return_trace=True)
    made = _pictures_of_images(name, model, first, images, logits, trace, digits.patch_size)
    made.append(_picture_of_tokens(name, tokens, level))
    if model.method.weighs_heads and model.method.decides: made.append(_picture_of_heads(name, model, images[-1]))
    if trace.gates: made.append(_picture_of_gates(name, model, digits, images.device))
    return made


def _pictures_of_images(name, model, batch, images, logits, trace, patch_size):
    "A picture of each image: its stages, or its depths where there are more stages than one can take in"
    show = _stages_of_image if max(len(counts.unique()) for counts in trace.counts) <= MOST_STAGES else _depths_of_image
    made = []
    for i, (label, guess) in enumerate(zip(batch.labels.tolist(), logits.argmax(1).tolist())):
        kind = list(LEVELS)[batch.levels[i]]
        figure, alt, reading = show(model, images[i], trace, i, patch_size)
        caption = f'{kind}: {name} says {guess}, and it is a {label}. {reading}'
        made.append(Picture(f'{name}-{kind}.png', figure, f'An image of level {kind} among clutter, {alt}.', caption))
    return made


def _stages_of_image(model, image, trace, i, patch_size):
    "Figure of the patches left in each stage, what is to be seen, and how to read it"
    P = backbone_of(model).num_prefix_tokens
    left = [n - P for n in trace.counts[i].unique().flip(0).tolist()]
    return (token_stages(image, trace, i, patch_size), f'in the stages of {model.method.name}; patches left: {left}',
            'Faded patches have left before these blocks.')


def _depths_of_image(model, image, trace, i, patch_size):
    "Figure of the blocks that each patch ran through, what is to be seen, and how to read it"
    backbone = backbone_of(model)
    low, high = trace.depth[i, backbone.num_prefix_tokens:].aminmax()
    return (depth_map(trace, i, backbone.patch_grid(image.shape[1:]), image),
            f'and the blocks that each patch ran through in {model.method.name}: {low} to {high}',
            'Light patches ran through more blocks.')


def _picture_of_tokens(name, tokens, level):
    there = [(number, kind) for number, kind in enumerate(LEVELS) if (level == number).any()]
    medians = ', '.join(f'{kind} {tokens[level == number].median():.1f}' for number, kind in there)
    return Picture(f'{name}-tokens.png', token_counts(tokens, level.long(), list(LEVELS)),
                   f'Histograms of tokens per block by difficulty; medians: {medians}.',
                   f'How many tokens an image keeps in {name}, by difficulty.')


def _picture_of_heads(name, model, image):
    return Picture(f'{name}-heads.png', head_scores(model, image),
                   f'Maps of the score of each patch by head, and their sum, a row for each stage of {name}.',
                   'Who voted for which patch: the share of each head in the score, and what passes the threshold.')


def _picture_of_gates(name, model, digits, device):
    n = min(GATED, len(digits))
    with torch.no_grad(): _, trace = model(normalize(digits.batch(range(n)).images).to(device), return_trace=True)
    return Picture(f'{name}-gates.png', gate_usage(trace, backbone_of(model).num_prefix_tokens),
                   'A table of blocks: percent of patches, of images for each head, and for attention and MLP, '
                   f'in {name}.',
                   f'Which parts of each block ran for {n} images, in percent.')
