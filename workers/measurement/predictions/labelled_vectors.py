"""Collects the vectors that labeled prompts are judged by: each prompt's last token, at the chosen depth.

R records; B prompts of S tokens in a batch; d hidden dimensions
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.measurement.inputs.labelled_batches import LabelledBatch
from workers.measurement.layers.sweep_state import SweepState

F32 = NDArray[np.float32]


def final_vectors(state: SweepState, batches: Sequence[LabelledBatch]) -> dict[str, F32]:
    """Return the vectors after the final norm, [R, d], by variant; the labeled batches are the sweep's last."""
    first = len(state.measured)
    return {
        name: in_record_order(
            batches,
            [
                state.head_input(name, state.streams.get(name, first + number))[:, -1].float().cpu().numpy()
                for number in range(len(batches))
            ],
        )
        for name in state.streams.names
    }


def in_record_order(batches: Sequence[LabelledBatch], vectors: Sequence[F32]) -> F32:
    """Return vectors that come batch by batch, [B, d] each, in the order of their records, [R, d]."""
    order = np.concatenate([batch.record_indices for batch in batches])
    ordered = np.empty((len(order), vectors[0].shape[1]), np.float32)
    ordered[order] = np.concatenate(vectors)
    return ordered
