"""``hydra/sweeper=checked``: Hydra's basic sweeper for cells that have been composed and checked already."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override


@dataclass
class CheckedSweeperConf(BasicSweeperConf):
    """Settings of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.metagrad_launchers.sweeper.CheckedSweeper"


class CheckedSweeper(BasicSweeper):
    """The basic sweeper, less its own composing of every job before the first one: 80 ms a cell, 13 minutes of 10,000.

    ``bench.app.plan_cells`` has composed each of them when Hydra starts; those that have their records are left out as
    ``bench.jobs.leaving_out`` says.
    """

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Batches of jobs that are still to be run."""
        from bench.jobs import still_to_run

        batches = (still_to_run(batch) for batch in BasicSweeper.split_arguments(overrides, max_batch_size))
        return [batch for batch in batches if batch]

    def sweep(self, arguments: list[str]) -> Any:
        """Run them, and take away the sweeper's copy of the configuration: it names the working folder."""
        try:
            return super().sweep(arguments)
        finally:
            if self.config is not None:
                with contextlib.suppress(OSError):
                    (Path(str(self.config.hydra.sweep.dir)) / "multirun.yaml").unlink()

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """All jobs are legal."""


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="metagrad-bench")
