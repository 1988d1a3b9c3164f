"""What a layer's projections take and give is captured however the layer calls them."""

import torch
from torch import nn

from workers.measurement.layers.capture import Capture, capturing
from workers.measurement.layers.sites import Site
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


class Writing(nn.Module):
    """A layer that adds to what one projection gave, and scales what another took."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("first", "second", "third"):
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        sum_of_both, scaled = self.first(hidden), hidden.clone()
        given = self.second(scaled)
        scaled.view(-1)[::2] *= 2
        sum_of_both[:, :2] += given[:, :2]
        return self.third(sum_of_both + scaled)


def test_a_layer_that_writes_into_what_was_captured_is_found_out_and_copies_are_kept_of_it() -> None:
    layer, hidden = Writing(), torch.randn(2, 3, 8)
    parts = projections(layer, NoConfig())
    with torch.no_grad():
        with capturing(layer, parts) as capture:
            layer(hidden)
            assert capture.overwritten() == {"first", "second"}
            assert not torch.equal(capture.outputs["first"], layer.first(hidden))
        with capturing(layer, parts, {"first", "second"}) as capture:
            layer(hidden)
        assert not capture.overwritten()
        for name in ("first", "second"):
            assert torch.equal(capture.inputs[name], hidden)
            assert torch.equal(capture.outputs[name], layer.get_submodule(name)(hidden))


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
