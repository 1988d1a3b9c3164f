"""What a layer's projections take and give is captured however the layer calls them."""

import torch
from torch import nn

from workers.measurement.capture import Capture, Site, capturing
from workers.measurement.models.projections import projections


class NoConfig:
    """Of an architecture that no table names."""

    model_type = "unheard of"


class Odd(nn.Module):
    """A layer that calls its modules in every way but the usual one."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("keyword", "rows", "latent", "twice", "never", "some", "nobody"):
            self.add_module(name, nn.Linear(8, 4))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.reshape(-1, 8)
        outputs = [
            self.keyword(input=hidden),
            self.rows(rows).view(*hidden.shape[:2], 4),
            self.latent(hidden[:, None])[:, 0],
            self.twice(hidden) + self.twice(-hidden),
        ]
        self.some(rows[:5])
        self.nobody(rows[:0])
        return torch.cat([sum(outputs), hidden[..., 4:]], dim=-1)


def captured(layer: nn.Module, hidden: torch.Tensor) -> Capture:
    with capturing(layer, projections(layer, NoConfig())) as capture:
        layer(hidden)
    return capture


def test_inputs_and_outputs_are_sequences_of_tokens_however_the_layer_hands_them_on() -> None:
    torch.manual_seed(0)
    layer, hidden = Odd(), torch.randn(2, 3, 8)
    capture = captured(layer, hidden)
    for name in ("keyword", "rows", "latent"):
        assert torch.equal(capture.inputs[name], hidden)
        torch.testing.assert_close(capture.outputs[name], layer.get_submodule(name)(hidden))
    assert torch.equal(capture.inputs["twice"], torch.cat([hidden, -hidden]))
    torch.testing.assert_close(capture.outputs["twice"], layer.twice(torch.cat([hidden, -hidden])))
    assert torch.equal(capture.inputs["some"], hidden.reshape(1, 6, 8)[:, :5])
    torch.testing.assert_close(capture.outputs["some"], layer.some(hidden.reshape(1, 6, 8)[:, :5]))
    assert capture.outputs.keys() == capture.inputs.keys() == {"keyword", "rows", "latent", "twice", "some"}


def test_what_did_not_run_has_no_site_and_what_did_has_its_module_name() -> None:
    layer = Odd()
    sites = captured(layer, torch.randn(2, 3, 8)).sites(projections(layer, NoConfig()))
    ran = ("keyword", "rows", "latent", "twice", "some")
    assert sites.keys() == {Site(name, port) for name in ran for port in ("input", "output")}


def test_nothing_is_captured_once_the_context_has_ended() -> None:
    layer = Odd()
    capture = captured(layer, torch.randn(2, 3, 8))
    kept = capture.inputs["rows"]
    layer(torch.randn(1, 4, 8))
    assert capture.inputs["rows"] is kept
