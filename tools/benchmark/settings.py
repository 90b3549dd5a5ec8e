"""What is measured: the model and how long to look at it."""

import dataclasses

# AdamW's rate matters to no duration; a small one keeps the loss of any model finite.
_LEARNING_RATE = 1e-4


def _setting(default, meaning):
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A benchmark's settings. Each says in its metadata, under `help`, what it is; the command line shows that.

    The defaults are the model that published comparisons of this project use. `peer_python` holds, for peers that live
    in another virtual environment, `{peer name: interpreter}`.
    """

    num_layers: int = _setting(4, "transformer layers")
    hidden_size: int = _setting(512, "size of the hidden states")
    num_heads: int = _setting(8, "attention heads")
    feed_forward_size: int = _setting(2048, "width of the feed-forward part")
    vocabulary_size: int = _setting(30522, "number of token ids")
    length: int = _setting(128, "tokens in a row")
    predictions: int = _setting(20, "masked tokens in a row")
    microbatch: int = _setting(16, "rows that go through the model at once")
    dropout: float = _setting(0.1, "dropout rate, everywhere")
    rounds: int = _setting(5, "how often the measured systems take turns")
    round_seconds: float = _setting(10.0, "how long each works in its turn; never less than one step")
    reader_rows: int = _setting(100_000, "reader: rows of the data set")
    input_shard_megabytes: int = _setting(64, "input: size of each of the eight shards")
    time_accumulation: int = _setting(8, "accumulation: microbatches of the step that is timed")
    memory_accumulation: int = _setting(32, "accumulation: microbatches of the step whose peak memory is taken")
    base_updates: int = _setting(1, "optimizers: 1 to measure the update of BERT-base, too, 0 for the above size alone")
    peer_python: dict = dataclasses.field(default_factory=dict)

    def for_process(self, **more):
        """Returns the settings that a measured process is given, as a dict of JSON values."""
        names = ("num_layers", "hidden_size", "num_heads", "feed_forward_size", "vocabulary_size", "length")
        names += ("predictions", "dropout")
        own = {name: getattr(self, name) for name in names}
        return (
            own
            | {
                "rows": self.microbatch,
                "max_length": max(512, self.length),
                "learning_rate": _LEARNING_RATE,
            }
            | more
        )
