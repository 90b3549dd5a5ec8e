"""Hugging Face Transformers on PyTorch: `BertForMaskedLM`, with logits at all positions, as its examples do."""

import protocol


def prepare(settings):
    """See `protocol.serve`."""
    import numpy
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=settings["vocabulary_size"],
        num_hidden_layers=settings["num_layers"],
        hidden_size=settings["hidden_size"],
        num_attention_heads=settings["num_heads"],
        intermediate_size=settings["feed_forward_size"],
        max_position_embeddings=settings["max_length"],
        hidden_dropout_prob=settings["dropout"],
        attention_probs_dropout_prob=settings["dropout"],
    )
    model = transformers.BertForMaskedLM(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=0.01, fused=True)
    token_ids, positions, masked = protocol.synthetic_batch(settings)
    labels = numpy.full(token_ids.shape, -100, "int64")  # -100: no loss here
    numpy.put_along_axis(labels, positions, masked, axis=1)
    inputs = {
        "input_ids": torch.tensor(token_ids, dtype=torch.long),
        "token_type_ids": torch.zeros(token_ids.shape, dtype=torch.long),
        "attention_mask": torch.ones(token_ids.shape, dtype=torch.long),
        "labels": torch.tensor(labels),
    }

    def step():
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # what its Trainer does by default
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return {"versions": versions}, {"run": protocol.timed_steps(step)}


if __name__ == "__main__":
    protocol.serve(prepare)
