"Files are whole or not there."
import pytest

from adaptive_tokens.models.files import staged, write_text


def test_staged_files_appear_together_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged(tmp_path/'new') as folder:
        (folder/'a').write_text('a')
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with staged(tmp_path/'new') as folder:
        for name in 'ab': (folder/name).write_text(name)
        assert not (tmp_path/'new').exists()
    assert sorted(f.name for f in (tmp_path/'new').iterdir()) == ['a', 'b']


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_text(tmp_path/'log', 'old')
    with pytest.raises(UnicodeEncodeError): write_text(tmp_path/'log', 'half a \ud800')
    assert (tmp_path/'log').read_text() == 'old' and [f.name for f in tmp_path.iterdir()] == ['log']
