"""Makes nezha.npz: what `NezhaForPreTraining` of Hugging Face's transformers computes, in a tiny size.

The class was taken out of transformers in release 4.46 (2024), so what the tests compare with is kept in a file. To make it
again, in an environment of its own:

    pip install 'transformers<4.46' torch
    python tests/models/golden/make_nezha.py

The file holds `config`, the JSON of the model's configuration; `ids`, `segments` `[rows, length]`; `tensor/NAME` and
`gradient/NAME` for each tensor of the model; `output/NAME` for each output and `seen/NAME`, what it is multiplied with
for the loss, the sum of it all, whose gradients are kept.
"""

import json
import pathlib

import numpy as np
import torch
from transformers import NezhaConfig, NezhaForPreTraining

CONFIG = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "max_relative_position": 3,  # far below the rows' length, so that distances beyond it occur
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LENGTHS = (14, 9, 5)


def main():
    """Writes the file beside this script."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = NezhaForPreTraining(NezhaConfig(**CONFIG)).eval()
    with torch.no_grad():  # zero biases would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = rng.integers(1, CONFIG["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    real = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids, segments = ids * real, rng.integers(0, 2, ids.shape) * real
    mask = torch.tensor(real.astype(int))
    tokens, kinds = torch.tensor(ids), torch.tensor(segments)
    answer = model(input_ids=tokens, attention_mask=mask, token_type_ids=kinds, output_hidden_states=True)
    outputs = {
        "hidden": answer.hidden_states[-1] * mask[..., None],
        "token_logits": answer.prediction_logits * mask[..., None],
        "pair_logits": answer.seq_relationship_logits,
    }
    seen = {name: rng.normal(size=tuple(output.shape)).astype(np.float32) for name, output in outputs.items()}
    sum((output * torch.tensor(seen[name])).sum() for name, output in outputs.items()).backward()

    arrays = {
        "config": json.dumps(model.config.to_dict()),
        "ids": ids.astype(np.int32),
        "segments": segments.astype(np.int32),
    }
    for name, output in outputs.items():
        arrays |= {f"output/{name}": output.detach().numpy(), f"seen/{name}": seen[name]}
    for name, parameter in model.named_parameters():
        arrays |= {f"tensor/{name}": parameter.detach().numpy(), f"gradient/{name}": parameter.grad.numpy()}
    np.savez_compressed(pathlib.Path(__file__).with_name("nezha.npz"), **arrays)


if __name__ == "__main__":
    main()
