"""From raw text to the rows of a step: tokenization, packing, records, manifests, lanes, masking."""
