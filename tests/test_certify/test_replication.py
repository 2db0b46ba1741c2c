"""layer_replication: two layers are alike only if every setting of theirs is, whatever its type."""

import pytest
import torch
import transformers as t

from certify.errors import NotInterpretedError
from certify.expect.replication import hold_alike
from tests.matrix.families import GROUPED


def of_layers(layers: int) -> t.SmolLM3ForCausalLM:
    """Every second one turns no positions: its `use_rope` is the number 0."""
    with torch.device("meta"):
        return t.SmolLM3ForCausalLM(t.SmolLM3Config(**GROUPED | {"num_hidden_layers": layers}, no_rope_layer_interval=2))


def test_a_setting_that_is_a_number_tells_layers_apart() -> None:
    hold_alike(of_layers(4), of_layers(6), [0, 1, 2, 3, 2, 3])
    with pytest.raises(NotInterpretedError, match="layer 2 is a copy of layer 1"):
        hold_alike(of_layers(4), of_layers(4), [0, 1, 1, 3])
