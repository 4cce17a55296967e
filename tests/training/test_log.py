"The log of a run, read and drawn."
import pytest
from small_runs import loader, quick, sparse

from adaptive_tokens.training.fit import fit
from adaptive_tokens.training.log import plot_log


def test_a_log_is_drawn_from_its_folder_file_or_rows(tmp_path):
    rows = fit(sparse(), loader(), loader(shuffle=False), epochs=2, out=tmp_path, **quick)
    for log in (tmp_path, tmp_path/'log.jsonl', rows):
        labels = [ax.get_ylabel() for ax in plot_log(log).axes]
        assert labels == ['loss', 'penalties', 'top-1, %', 'share of dense multiply-adds', 'learning rate',
                          'thresholds']
    with pytest.raises(FileNotFoundError, match='no log'): plot_log(tmp_path/'nowhere')
    with pytest.raises(ValueError, match='no epoch yet'): plot_log([])
