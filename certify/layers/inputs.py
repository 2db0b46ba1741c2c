"""What a model is run on: tokens by chance, the same in every run."""

from typing import Any

import torch
from torch import Tensor

from certify.errors import NotInterpretedError

TOKENS = 64  # more do not reach more experts of a skewed router; those are asked one by one
SEED = 0


def arguments(model: Any) -> dict[str, Tensor]:
    """Arguments of `forward` for a model that reads text. Raises NotInterpretedError for one that reads pixels or sound."""
    if model.main_input_name != "input_ids":
        raise NotInterpretedError(f"the model reads {model.main_input_name}; this version runs models on tokens only")
    config = model.config
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None) or TOKENS
    ids = _tokens(config, int(text.vocab_size), min(TOKENS, most))
    return {"input_ids": ids, "decoder_input_ids": ids.flip(1)} if config.is_encoder_decoder else {"input_ids": ids}


def _tokens(config: Any, vocabulary: int, count: int) -> Tensor:
    """(1, count) int64, without the tokens that stand for something else than text."""
    stated = config.to_dict() | config.get_text_config().to_dict()
    special = {value for name, value in stated.items() if name.endswith(("token_id", "token_index")) and isinstance(value, int)}
    text = torch.tensor([number for number in range(vocabulary) if number not in special])
    chance = torch.Generator().manual_seed(SEED)
    return text[torch.randint(0, len(text), (1, count), generator=chance)]
