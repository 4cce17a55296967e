"Importing the package is light, and a forward pass stays within few functions."
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import spread_vit

import adaptive_tokens as at

HEAVY = ['matplotlib', 'sklearn', 'accelerate', 'anywidget']
USE = 'at.adapt, at.MaskedTokens, at.PackedTokens, at.ASViT, at.AViT, at.AdaViT, at.macs, at.calibrate'


@pytest.mark.parametrize('use', ['', f'; {USE}', '; import adaptive_tokens.models.checkpoint, adaptive_tokens.methods'])
def test_the_package_loads_nothing_heavy(use):
    code = f'import json, sys, adaptive_tokens as at{use}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))'
    done = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, check=True)
    assert json.loads(done.stdout) == []


def calls_of(run):
    "Names of the functions of the package that a run calls, and how deep they call each other; comprehensions aside"
    root, inner = str(Path(at.__file__).parent), ('<listcomp>', '<genexpr>', '<dictcomp>', '<setcomp>', '<lambda>')
    names, stack, deepest = set(), [], 0

    def profile(frame, event, arg):
        nonlocal deepest
        if event == 'call':
            code = frame.f_code
            stack.append(code.co_filename.startswith(root) and code.co_name not in inner)
            if stack[-1]: names.add((code.co_filename, code.co_firstlineno, code.co_name))
            deepest = max(deepest, sum(stack))
        elif event == 'return' and stack: stack.pop()
    sys.setprofile(profile)
    try: run()
    finally: sys.setprofile(None)
    return names, deepest


def test_a_packed_forward_pass_calls_few_functions_of_the_package():
    vit, images = spread_vit(images=4)
    model = at.adapt(vit, 'as-vit', .65)
    at.calibrate(model, [images])
    with torch.inference_mode():
        model(images)
        names, depth = calls_of(lambda: model(images))
    assert depth <= 5, depth
    assert len(names) <= 25, sorted(names)
