"""``hydra/sweeper=checked``: Hydra's basic sweeper for cells that have been composed and checked already."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore


@dataclass
class CheckedSweeperConf(BasicSweeperConf):
    """Settings of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.metagrad_launchers.sweeper.CheckedSweeper"


class CheckedSweeper(BasicSweeper):
    """The basic sweeper, less its own composing of every job before the first one: 80 ms a cell, 13 minutes of 10,000.

    ``bench.app.plan_cells`` has composed each of them when Hydra starts.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """All jobs are legal."""


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="metagrad-bench")
