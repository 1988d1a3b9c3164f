"""What the tests share: the measurement of the real model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from service.contracts.report import Report


class Measured(NamedTuple):
    """A measurement of the real model."""

    path: Path
    out: Path
    report: Report
    token_ids: torch.Tensor
    """[N, S]"""

    @property
    def batches(self) -> Sequence[torch.Tensor]:
        """The batches that were measured: int8's outlier columns are those of a batch."""
        return self.token_ids.split(self.report.calibration.batch_sequences)

    def rows(self, table: str, **only: Any) -> list[dict[str, Any]]:
        filters = [(column, "==", value) for column, value in only.items()]
        return pq.read_table(self.out / f"tables/{table}.parquet", filters=filters or None).to_pylist()
