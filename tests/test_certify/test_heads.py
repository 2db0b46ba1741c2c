"""The head that a task needs and the base has not: it is named as the class names it, whether the base has another head or none."""

import pytest
import torch
import transformers as t

from certify.expect.heads import lost_head
from tests.matrix.families import BERT, GROUPED

LLAMA, OF_BERT = t.LlamaConfig(**GROUPED), t.BertConfig(**BERT)


@pytest.mark.parametrize(
    ("kind", "config", "task", "name"),
    [
        (t.LlamaForCausalLM, LLAMA, "SEQ_CLS", "score.weight"),
        (t.LlamaModel, LLAMA, "SEQ_CLS", "score.weight"),
        (t.BertModel, OF_BERT, "TOKEN_CLS", "classifier.bias"),
        (t.LlamaForSequenceClassification, LLAMA, "SEQ_CLS", ""),
    ],
)
def test_a_lost_head(kind: type[t.PreTrainedModel], config: t.PretrainedConfig, task: str, name: str) -> None:
    with torch.device("meta"):
        assert lost_head(kind(config), task) == name
