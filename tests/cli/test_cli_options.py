"Complete help, examples that can be typed, and words that argparse refuses."
import argparse
import shlex

import pytest

import adaptive_tokens as at
from adaptive_tokens.cli.main import COMMANDS
from adaptive_tokens.cli.options import make_parser


@pytest.mark.parametrize('name', COMMANDS)
def test_help_says_what_each_option_means_and_what_happens_without(name, run):
    code, text, _ = run(name, '--help')
    assert code == 0 and COMMANDS[name].description.split('\n')[0] in text and 'examples:' in text
    sub = next(a for a in make_parser(COMMANDS)._actions if isinstance(a, argparse._SubParsersAction)).choices[name]
    for option in (o for o in sub._actions if o.dest != 'help'):
        assert option.option_strings[0] in text and '(default: ' in option.help and len(option.help) > 30
        assert 'None' not in option.help and not option.help.split('(default')[0].endswith('. ')
        assert option.nargs == 0 or 'e.g. ' in option.help
    assert {'--device', '--dtype', '--seed', '--debug'} <= {o.option_strings[-1] for o in sub._actions}


@pytest.mark.parametrize('line', [line for c in COMMANDS.values() for line in c.examples])
def test_examples_are_complete_command_lines(line):
    program, *words = shlex.split(line)
    assert program == 'adaptive-tokens' and make_parser(COMMANDS).parse_args(words).command == words[0]


def test_help_and_version_of_the_whole(run):
    code, text, _ = run('--help')
    assert code == 0 and all(f'    {name}' in text for name in ('demo', 'train', 'bench', 'calibrate', 'explore'))
    assert run('--version')[:2] == (0, f'{at.__version__}\n')


@pytest.mark.parametrize('words, part', [
    (['bench', '--n', '0'], "'0'"), (['demo', '--repeats', 'many'], "'many'"), (['train', '--epochs', '2.5'], "'2.5'"),
    (['calibrate', '--seed', '-1'], '--seed'), (['train', '--seed', str(2**32)], str(2**32)),
    (['bench', '--budgets'], '--budgets'), (['bench', '--budgets', 'half'], "'half'"),
    (['demo', '--device', 'gpu'], 'cuda'), (['bench', '--dtype', 'float8'], 'bfloat16'),
    (['bench', '--modle', 'x'], '--modle'), (['bench', '--mod', 'x'], '--mod')])
def test_words_that_argparse_refuses(refused, words, part): refused([part, 'see adaptive-tokens', '--help'], *words)


def test_commands_that_do_not_exist(refused):
    refused(["'trian'", 'train'], 'trian', writes=False)
    refused(['COMMAND'], writes=False)
