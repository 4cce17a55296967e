"""What must be told of a checkpoint: data, recipe, versions, hardware, result and the licence of the backbone."""
from dataclasses import replace

from huggingface_hub import ModelCardData

from ..measure.provenance import hardware
from ..models.files import write_text
from ..models.model import is_adaptive
from .resume import best_epoch
from .run import Run
from .signature import describe_data

__all__ = ['model_card', 'write_cards']


def compared_rows(
    run:Run, # Finished run
) -> dict:   # Rows from `Run.judge` by name; empty where nothing was validated
    "The kept model, the same with every token, and its teacher, on the same validation images"
    rows = {}
    if run.val is None: return rows
    if run.teacher is not None: rows['teacher, dense'] = run.judge(run.teacher)
    if is_adaptive(run.model): rows['this model, every token'] = run.judge(run.result.vit)
    return rows | {'this model': run.judge(run.result)}


def yaml_head(method, licence):
    "The lines that the hub reads"
    data = ModelCardData(library_name='timm' if method is None else 'adaptive_tokens', license=licence,
                         pipeline_tag='image-classification', tags=['adaptive-tokens', 'vision-transformer', 'timm'])
    return f'---\n{data.to_yaml()}\n---'


def table(rows):
    "Results as a Markdown table"
    if not rows: return 'Not validated.'
    head = ['| | top-1, % | images | GMACs per image (spread) | share of dense |', '|---|---|---|---|---|']
    return '\n'.join(head + [f"| {name} | {r['top1']:.2f} | {r['n']} | {r['gmacs']:.4g} ({r['gmacs_spread']:.2g}) "
                             f"| {r['macs_share']:.3f} |" for name, r in rows.items()])


def provenance(run, source, seed):
    "Data, seed, batches, backbone and licence in a sentence each"
    train_loader, val_loader = run.loaders
    size, processes = getattr(train_loader, 'batch_size', None), run.accelerator.num_processes
    batches = f'batches of {size * processes}, ' if size else ''
    return (f'Trained on {describe_data(train_loader)}; validated on {describe_data(val_loader)}; '
            f'seed {seed}, {run.steps} steps, {batches}{processes} process(es). '
            f'Backbone: {source.get("hf_hub_id") or source.get("architecture", "fresh")}, '
            f'licence: {source.get("license") or "not stated by its weights"}.')


def model_card(
    run:Run,   # Finished run
    rows:dict, # Rows of the table by name; empty where nothing was validated
    seed:int,  # Seed of the run
) -> str:      # Markdown with a yaml head, as the hub wants it
    "Data, recipe, versions, hardware, result and the backbone's licence"
    method, source = getattr(run.model, 'method', None), getattr(run.vit, 'pretrained_cfg', None) or {}
    kind, recipe = 'dense', run.recipe
    if method is not None:
        kind = f'{method.name}, budget {method.budget:g}'
        recipe = replace(recipe, method=method.name, budget=method.budget)
    facts = '\n'.join(f'- {name}: {value}' for name, value in hardware().items() if value is not None)
    return '\n'.join([
        yaml_head(method, source.get('license')), f'# {source.get("architecture", "vit")}: {kind}', '',
        table(rows), '', provenance(run, source, seed), '',
        '## Recipe', '', f'```yaml\n{recipe}```', '', '## Made with', '', facts, ''])


def write_cards(
    run:Run,  # Finished run
    seed:int, # Seed of the run
):
    "A model card beside last/ and best/; an earlier best has the numbers of its epoch"
    rows = compared_rows(run)
    best = best_epoch(run.rows, run.budget)
    if not run.accelerator.is_main_process: return
    write_text(run.out/'last'/'README.md', model_card(run, rows, seed))
    if rows and best != len(run.rows) - 1:
        rows = {name: row for name, row in rows.items() if name != 'this model, every token'}
        rows['this model'] = run.rows[best]
    write_text(run.out/'best'/'README.md', model_card(run, rows, seed))
