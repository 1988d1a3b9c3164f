"""The tables of a report, as data: names, columns, types and meanings, the same for whoever writes or reads them.

Types are Arrow's names. Every column can be null where the description says so; a null is "there is no such
figure", never zero.
"""

from collections.abc import Iterable
from types import MappingProxyType
from typing import NamedTuple


class Column(NamedTuple):
    """One column of a table."""

    name: str
    type: str
    """`int32`, `int64`, `float32`, `float64`, `bool` or `string`."""
    meaning: str
    since: str = "1.0"
    """The schema version that brought it; a report of an earlier one reads as nulls there."""


class Table(NamedTuple):
    """One table of a report."""

    name: str
    title: str
    columns: tuple[Column, ...]
    scheme_columns: tuple[Column, ...] = ()
    """Columns that come once for each scheme; `{scheme}` in the name stands for its name."""

    def columns_for(self, schemes: Iterable[str]) -> tuple[Column, ...]:
        """Return the columns of a report on these schemes, in order."""
        own = (column._replace(name=column.name.format(scheme=s)) for s in schemes for column in self.scheme_columns)
        return (*self.columns, *own)


_LAYER = Column("layer", "int32", "decoder layer, from 0")
_COMPONENT = Column(
    "component", "string", "attn.q attn.k attn.v attn.o mlp.gate mlp.up mlp.down block, or a module's name"
)
_PORT = Column("port", "string", "input or output")
_SITE = (_LAYER, _COMPONENT, _PORT)
SCHEME = Column("scheme", "string", "name of the scheme")

_TABLES = (
    Table(
        "sites",
        "Dynamic range of every site",
        (
            *_SITE,
            Column("tokens", "int64", "token positions seen, T"),
            Column("channels", "int32", "channels, d"),
            Column("min", "float32", "smallest value"),
            Column("max", "float32", "largest value"),
            Column("abs_max", "float32", "largest magnitude"),
            Column("mean", "float64", "mean over all elements"),
            Column("std", "float64", "population standard deviation over all elements"),
            Column("rms", "float64", "root mean square over all elements"),
            Column("median_abs", "float64", "median of abs(x), from the histogram"),
            Column("p99_abs", "float64", "99th percentile of abs(x), from the histogram"),
            Column("p99_9_abs", "float64", "99.9th percentile of abs(x), from the histogram"),
            Column("p99_99_abs", "float64", "99.99th percentile of abs(x), from the histogram"),
            Column("crest_db", "float64", "20 log10(abs_max / rms); null where rms is 0"),
            Column("max_to_median", "float64", "abs_max / median_abs; null where median_abs is 0"),
            Column("range_bits", "float64", "log2(abs_max / median_abs); null where median_abs is 0"),
            Column("kurtosis", "float64", "population, non-excess, over all elements; null where std is 0"),
            Column(
                "kurtosis_per_sequence",
                "float64",
                "mean over sequences of E[(x - mean)^4] / (std^4 + 1e-6), arXiv 2306.12929",
            ),
            Column("inf_norm_per_sequence", "float64", "mean over sequences of max abs(x), arXiv 2306.12929"),
            Column("token_abs_max_p50", "float64", "median over tokens of the token's largest magnitude"),
            Column("token_abs_max_p99", "float64", "99th percentile over tokens of the token's largest magnitude"),
            Column("over_fp16", "int64", "values with abs(x) > 65504"),
            Column("nonfinite", "int64", "NaN and infinite values, left out of every other figure"),
        ),
    ),
    Table(
        "channels",
        "Range of every channel of every site",
        (
            *_SITE,
            Column("channel", "int32", "channel, from 0"),
            Column("min", "float32", "smallest value"),
            Column("max", "float32", "largest value"),
            Column("abs_max", "float32", "largest magnitude"),
            Column("mean", "float64", "mean over token positions, to 32 fraction bits"),
            Column("variance", "float64", "population variance over token positions, to 32 fraction bits"),
            Column("over_threshold", "int64", "values with abs(x) at or over the llm_int8 magnitude"),
        ),
    ),
    Table(
        "histograms",
        "Distribution of every site, 32 bins per octave; only non-empty bins",
        (
            *_SITE,
            Column("bin_low", "float32", "smallest value of the bin"),
            Column("bin_high", "float32", "largest value of the bin"),
            Column("count", "int64", "values in the bin"),
        ),
    ),
    Table(
        "outlier_dimensions",
        "Outlier dimensions by definition",
        (
            Column("definition", "string", "name of the definition"),
            Column("layer", "int32", "decoder layer that flags it; null in the row for all layers"),
            Column("dimension", "int32", "hidden dimension"),
            Column("layers_fraction", "float64", "share of the layers in which the dimension is flagged"),
            Column(
                "positions_fraction",
                "float64",
                "llm_int8, llm_int8_relative: share of token positions over the magnitude in a layer or more",
            ),
            Column("abs_max", "float32", "largest magnitude of the dimension where the definition looks"),
            Column("one_sided", "bool", "llm_int8, llm_int8_relative: all values over the magnitude have one sign"),
            Column("q25", "float64", "llm_int8, llm_int8_relative: first quartile of the values over the magnitude"),
            Column("q50", "float64", "llm_int8, llm_int8_relative: median of the values over the magnitude"),
            Column("q75", "float64", "llm_int8, llm_int8_relative: third quartile of the values over the magnitude"),
        ),
    ),
    Table(
        "massive_activations",
        "Massive activations one by one, the largest first",
        (
            _LAYER,
            Column("sequence", "int32", "calibration sequence, from 0"),
            Column("position", "int32", "position in the sequence, from 0"),
            Column("token", "string", "the token's text; null without a tokenizer"),
            Column("token_id", "int64", "input token at the position"),
            Column("dimension", "int32", "hidden dimension"),
            Column("value", "float32", "the activation at block.output"),
            Column(
                "ratio_tensor", "float64", "abs(value) over the median magnitude of the sequence; null where that is 0"
            ),
            Column("ratio_token", "float64", "abs(value) over the median magnitude of the token; null where that is 0"),
        ),
    ),
    Table(
        "heads",
        "Attention heads: outlier flags, and SQNR under each scheme",
        (
            _LAYER,
            Column("head", "int32", "query head, from 0"),
            Column("abs_max", "float32", "largest magnitude of the head's output z_h"),
            Column("rms", "float64", "root mean square of z_h"),
            Column("crest_db", "float64", "20 log10(abs_max / rms); null where rms is 0"),
            Column("relative_peak", "float64", "abs_max over the root mean square of the whole layer's z"),
            Column("predicted_peak", "float64", "null; before schema version 1.2 a prediction from the weights"),
            Column("measured_outlier", "bool", "relative_peak at or above its threshold"),
            Column("predicted_outlier", "bool", "null, like predicted_peak"),
        ),
        (Column("sqnr_db_{scheme}", "float64", "of z_h in the scheme's own stream; null where exact or z_h is 0"),),
    ),
    Table(
        "errors",
        "Error of every scheme at every site",
        (
            SCHEME,
            *_SITE,
            Column(
                "mode",
                "string",
                "isolated: same input as the reference; accumulated: in the scheme's own stream",
            ),
            Column("sqnr_db", "float64", "signal to quantization noise ratio; null where exact, or where y is 0"),
            Column("relative_l2", "float64", "norm2(y - q) / norm2(y); null where y is 0"),
            Column("median_token_error", "float64", "median over tokens of norm2(y_t - q_t) / norm2(y_t)"),
            Column("cosine", "float64", "mean over tokens of cos(y_t, q_t)"),
            Column("max_abs_error", "float64", "max abs(y - q)"),
            Column("weight_error", "float64", "norm_F(W - Q(W)) / norm_F(W); at isolated outputs, else null"),
            Column("exact", "bool", "y and q are equal everywhere: sqnr_db is infinite"),
            Column(
                "sqnr_db_typical",
                "float64",
                "accumulated at block.output: sqnr_db without the dimensions that are massive in any layer; null "
                "elsewhere, and where the rest is exact or 0",
                since="1.2",
            ),
        ),
    ),
    Table(
        "fp16_columns",
        "Share of the input columns that int8 computes in 16 bits",
        (
            SCHEME,
            _LAYER,
            _COMPONENT,
            Column("prefill", "float64", "share of the input's columns; mean over calls of one sequence each"),
            Column("decode", "float64", "the same over calls of one token each"),
        ),
    ),
    Table(
        "tokens",
        "Loss and KL divergence of every scheme at every position",
        (
            SCHEME,
            Column("sequence", "int32", "calibration sequence, from 0"),
            Column("position", "int32", "position in the sequence, from 0"),
            Column("token_id", "int64", "input token at the position"),
            Column("nll_reference", "float64", "negative log likelihood of the next token; null where not scored"),
            Column("nll_scheme", "float64", "the same under the scheme; null where not scored"),
            Column("kl_divergence", "float64", "KL(reference || scheme), nats; null where not scored"),
            Column("same_top", "bool", "both give the same most likely next token; null where not scored"),
        ),
    ),
    Table(
        "profile",
        "One hidden-state vector",
        (
            Column("dimension", "int32", "hidden dimension, from 0"),
            Column("value", "float32", "its value"),
        ),
    ),
    Table(
        "surface",
        "One sequence's hidden state by position and channel, the largest magnitude of each cell",
        (
            Column("position", "int32", "position in the sequence of the cell's largest magnitude"),
            Column("channel", "int32", "hidden dimension of the cell's largest magnitude"),
            Column("value", "float32", "the activation there; null where no value of the cell is finite"),
        ),
    ),
)

TABLES = MappingProxyType({table.name: table for table in _TABLES})
"""Every table by name."""
