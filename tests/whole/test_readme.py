"The README's snippet runs as pasted and prints what its comments say."
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_snippet_prints_what_its_comments_say(tmp_path):
    code = re.search(r'^```py\n(.*?)^```', (ROOT/'README.md').read_text(encoding='utf-8'), re.M | re.S)[1]
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.splitlines()
    said = [line.rpartition('# ')[2].strip() for line in code.splitlines() if '# ' in line]
    assert printed and [line for line in printed if line not in said] == []
