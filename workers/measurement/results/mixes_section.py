"""Writes the table `mixes`: every mix and control that was measured."""

from collections.abc import Mapping

from service.contracts.harm.recommendation import Recommendation
from workers.measurement.runtime.table_writer import TableWriter


def write_mixes(recommendations: Mapping[str, Recommendation], table: TableWriter) -> None:
    """Append one row for each mix and control, scheme by scheme."""
    table.append_rows(
        [
            {
                "scheme": scheme,
                "mix": mix.name,
                "bytes": mix.bytes,
                "predicted_kl": mix.predicted_kl,
                "kl": mix.kl.value,
                "standard_error": mix.kl.standard_error,
                "control": mix.control,
                "modules": " ".join(mix.skip_modules),
            }
            for scheme, recommended in recommendations.items()
            for mix in recommended.mixes
        ]
    )
