"""Reads what mixes need from the layers' files, and writes the table `mixes`."""

from collections.abc import Mapping, Sequence

import pyarrow.compute as pc

from service.contracts.harm.recommendation import Recommendation
from workers.measurement.harm.copies import Module
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.projections import projections
from workers.measurement.results.layer_files import LayerFiles
from workers.measurement.runtime.table_writer import TableWriter


def isolated_errors(files: LayerFiles, decoder: Decoder, schemes: Sequence[str]) -> dict[str, dict[Module, float]]:
    """Return by scheme the isolated relative_l2 of every module's output; of a fused one the largest of its parts."""
    errors: dict[str, dict[Module, float]] = {scheme: {} for scheme in schemes}
    isolated = (pc.field("mode") == "isolated") & (pc.field("port") == "output")
    for index, layer in enumerate(decoder.layers):
        places = {
            component: Module(index, part.name)
            for part in projections(layer, decoder.layer_config(index))
            for component in part.parts
        }
        for row in files.table(index, "errors").filter(isolated).to_pylist():
            module = places.get(row["component"])
            if module is not None and row["relative_l2"] is not None:
                of_scheme = errors[row["scheme"]]
                of_scheme[module] = max(of_scheme.get(module, 0.0), row["relative_l2"])
    return errors


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
