"""An optimizer step's rows shared out among processes."""

from __future__ import annotations

import pytest

from helpers.core.config import TrainConfig, build_config
from helpers.core.errors import ConfigError
from helpers.core.shares import Share, local_config, share_out


@pytest.mark.parametrize(
    ("batch", "passes", "processes", "own"),
    [
        (2, 4, 1, (2, 4)),
        (2, 4, 2, (2, 2)),
        (2, 4, 4, (2, 1)),
        (2, 4, 8, (1, 1)),
        (8, 1, 2, (4, 1)),
        (8, 3, 4, (6, 1)),
        (4, 3, 2, (3, 2)),
    ],
)
def test_the_rows_of_a_step_stay_as_many(batch, passes, processes, own):
    """Passes are spread first; where that does not divide, they become smaller, never larger than batch_size."""
    share = share_out(TrainConfig(batch_size=batch, gradient_accumulation=passes), processes)
    assert (share.batch_size, share.gradient_accumulation) == own
    assert share.rows_per_step() == batch * passes


def test_an_uneven_split_is_refused_with_the_numbers():
    """The message has the rows, the processes, the counts that would do, and the next number of rows."""
    with pytest.raises(ConfigError) as caught:
        share_out(TrainConfig(batch_size=2, gradient_accumulation=4), 3)
    assert str(caught.value) == (
        "batch_size x gradient_accumulation: expected rows that 3 processes can share evenly, got '2 x 4 = 8'. "
        "Launch 1, 2, 4, 8 processes, or choose 9 rows a step under another run_name."
    )


def test_a_share_describes_itself():
    """All four numbers stand in the sentence."""
    assert Share(2, 4, 3).describe() == (
        "24 rows an optimizer step = 2 processes x batch_size 4 x gradient_accumulation 3."
    )


def test_one_process_sees_its_own_part_of_a_run():
    """Only the layout differs from the run's configuration."""
    config = build_config("alpaca", preset="smoke", batch_size=4, gradient_accumulation=2)
    own = local_config(config, 4)
    assert (own.train.batch_size, own.train.gradient_accumulation) == (2, 1)
    changed = {k for k, v in own.flat().items() if config.flat()[k] != v}
    assert changed == {"batch_size", "gradient_accumulation"}
