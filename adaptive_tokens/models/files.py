"""Files and folders that are whole or absent, whatever interrupts."""
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

__all__ = ['staged', 'write_text']


@contextmanager
def staged(
    folder:str|os.PathLike, # Folder that receives the files; made if missing
):                          # Context that yields the folder to write into
    "Files written in the block take their places in `folder` when it ends, and none does if it fails"
    target = Path(folder).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{target.name}.', dir=target.parent) as staging:
        yield Path(staging)
        target.mkdir(exist_ok=True)
        for file in sorted(Path(staging).iterdir()): os.replace(file, target/file.name)


def write_text(
    path:str|os.PathLike, # File to write
    text:str,             # Whole content of the file
):
    "Write a text file that is either the old one or the new one, whatever interrupts"
    path = Path(path).absolute()
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as staging:
        whole = Path(staging)/path.name
        whole.write_text(text, encoding='utf-8')
        os.replace(whole, path)
