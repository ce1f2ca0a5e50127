"""Records tests/models/recorded: tiny checkpoints and what transformers computes with them.

    python tests/models/record.py

So that every family is tested where PyTorch is not installed. Weights are multiples of 1/32, which
float16 holds exactly: files stay small, and nothing is rounded when they are read.
"""

import json
import sys

import numpy as np
import torch

from tests.helpers import reference

LENGTHS = (40, 17, 2, 9)


def record(variant: str) -> None:
    sizes = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2}
    sizes |= {'intermediate_size': 24, 'max_position_embeddings': 44}
    width = reference.VARIANTS[variant][1].get('embedding_size')
    if width:
        sizes['embedding_size'] = width // 2
    model = reference.build(variant, num_labels=2, **sizes)
    weights = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.round(parameter * 32) / 32)
            weights[f'w:{name}'] = parameter.numpy().astype(np.float16)
            np.testing.assert_array_equal(weights[f'w:{name}'], parameter.numpy())
        tokens, types = reference.rows(LENGTHS, pad_id=model.config.pad_token_id)
        states, logits = (x.numpy() for x in reference.theirs(model, tokens, types))
    states = np.where((tokens != model.config.pad_token_id)[..., None], states, 0)
    content = json.loads(model.config.to_json_string()) | {'architectures': [type(model).__name__]}
    reference.RECORDED.mkdir(exist_ok=True)
    (reference.RECORDED / f'{variant}.json').write_text(
        json.dumps(content, indent=2, sort_keys=True) + '\n'
    )
    outputs = {'tokens': tokens, 'types': types, 'states': states, 'logits': logits}
    np.savez_compressed(reference.RECORDED / f'{variant}.npz', **outputs, **weights)


if __name__ == '__main__':
    for chosen in sys.argv[1:] or reference.VARIANTS:
        record(chosen)
