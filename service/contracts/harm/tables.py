"""The tables of a report on harm and mixes, as data. A report has those that its job asked for."""

from types import MappingProxyType

from service.contracts.harm.settings import HarmSettings
from service.contracts.tables import SCHEME, Column, Table

OTHER_INPUTS = "other inputs"
"""In `dimension_harm`, stands in `inputs` of the row for the modules that do not read the residual stream."""
RESIDUAL_STREAM = "residual stream"
"""In `dimension_harm`, stands in `inputs` of the rows for its dimensions."""

HARM = Table(
    "harm",
    "Harm of replacing a module or a layer alone",
    (
        SCHEME,
        Column("layer", "int32", "decoder layer, from 0"),
        Column(
            "component",
            "string",
            "attn.q attn.k attn.v attn.o mlp.gate mlp.up mlp.down, attn.qkv or mlp.gate_up of a fused module, block of "
            "a whole layer, or a module's name",
        ),
        Column("module", "string", "full name of the module, or of the layer"),
        Column("harm", "float64", "mean KL(reference || swap) over scored positions, nats; null where not measured"),
        Column("standard_error", "float64", "of harm, by sequence; null where not measured"),
        Column("estimated_harm", "float64", "harm from gradients, to second order; null where not estimated"),
        Column("estimated_standard_error", "float64", "of estimated_harm, by sequence; null where not estimated"),
        Column(
            "noise_floor",
            "float64",
            "KL divergence that moving each element of the layer's output by one representable value causes; null "
            "where no harm was measured",
        ),
        Column("bytes_saved", "int64", "bytes by which the quantized weights are smaller"),
        Column("at_random", "bool", "measured because it was drawn at random, to check the estimate"),
    ),
)
INTERACTIONS = Table(
    "interactions",
    "Estimated interaction of every pair of modules: E[a_m a_n] / (2 positions), in both orders",
    (
        SCHEME,
        Column("module_a", "string", "full name of a module"),
        Column("module_b", "string", "full name of a module; the same one where the value is its estimated harm"),
        Column("value", "float64", "nats; the sum over all pairs of a set is the KL divergence predicted for it"),
    ),
)
DIMENSION_HARM = Table(
    "dimension_harm",
    "Share of every dimension of the residual stream in the estimated harm",
    (
        SCHEME,
        Column("inputs", "string", "residual stream, or other inputs in the row for the modules that read others"),
        Column("dimension", "int32", "hidden dimension; null in the row for other inputs"),
        Column("share", "float64", "of the sum of the modules' estimated harms; may be negative"),
        Column("standard_error", "float64", "of share, by sequence"),
        Column("significant", "bool", "differs from 0 by Holm's method at 0.05 over all dimensions"),
        Column("definitions", "string", "definitions of outliers that flag it, separated by spaces; empty if none"),
    ),
)
MIXES = Table(
    "mixes",
    "Mixes that were measured, and their controls",
    (
        SCHEME,
        Column("mix", "string", "name of the mix"),
        Column("bytes", "int64", "bytes of the model's weights, scales and embeddings"),
        Column(
            "predicted_kl", "float64", "predicted KL divergence, nats: harms and a quarter of the interactions, scaled"
        ),
        Column("kl", "float64", "mean KL divergence on held-out sequences, nats"),
        Column("standard_error", "float64", "of kl, by sequence"),
        Column("control", "bool", "a control, which the recommendation must beat"),
        Column("modules", "string", "full names of the modules kept in 16 bits, separated by spaces"),
    ),
)

HARM_TABLES = MappingProxyType({table.name: table for table in (HARM, INTERACTIONS, DIMENSION_HARM, MIXES)})
"""The tables of this module by name."""


def harm_tables(settings: HarmSettings) -> tuple[Table, ...]:
    """Return the tables that a report on these settings has, but for `mixes`."""
    wanted = ((HARM, settings.measures), (INTERACTIONS, settings.estimates), (DIMENSION_HARM, settings.dimensions))
    return tuple(table for table, is_wanted in wanted if is_wanted)
