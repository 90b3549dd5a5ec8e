"""Hugging Face Transformers on PyTorch: `BertForSequenceClassification`, training and predicting."""

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
    model = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=0.01, fused=True)
    token_ids, lengths = protocol.synthetic_sentences(settings)
    rows = settings["rows"]
    inside = numpy.arange(settings["length"]) < lengths[:, None]
    ids, mask = torch.tensor(token_ids, dtype=torch.long), torch.tensor(inside, dtype=torch.long)
    inputs = {"input_ids": ids[:rows], "attention_mask": mask[:rows], "labels": torch.arange(rows) % 2}

    def step():
        model.train()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def predict(order):
        model.eval()
        total = 0.0
        with torch.inference_mode():
            for first in range(0, len(order), rows):
                part = order[first : first + rows]
                longest = int(lengths[part].max())  # as its pipelines pad
                logits = model(input_ids=ids[part, :longest], attention_mask=mask[part, :longest]).logits
                total += logits.softmax(-1)[:, 0].sum().item()
        return total

    sentences = numpy.arange(settings["sentences"])
    by_length = numpy.argsort(lengths, kind="stable")
    modes = {
        "step": protocol.timed_steps(step),
        "predict": protocol.timed_steps(lambda: predict(by_length)),
        "predict_in_order": protocol.timed_steps(lambda: predict(sentences)),
    }
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    information = {"versions": versions, "modes": list(modes)}
    return information, {"run": lambda mode, **options: modes[mode](**options)}


if __name__ == "__main__":
    protocol.serve(prepare)
