"""What is measured: the model and how long to look at it."""

import dataclasses

# AdamW's rate matters to no duration; a small one keeps the loss of any model finite.
_LEARNING_RATE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A benchmark's settings; the defaults are the model that published comparisons of this project use.

    Args:
        num_layers, hidden_size, num_heads, feed_forward_size: the encoder.
        vocabulary_size: number of token ids.
        length: tokens in a row.
        predictions: masked tokens in a row.
        microbatch: rows that go through the model at once.
        dropout: rate everywhere.
        rounds: how often the measured systems take turns.
        round_seconds: how long each measures in its turn; never less than one step.
        reader_rows: rows of the data set that `reader` reads.
        memory_accumulation: the number of accumulation steps whose peak memory is compared with that of one.
        time_accumulation: the number of accumulation steps whose time is compared with as many times that of one.
        peer_python: `{peer name: interpreter}` for peers that live in another virtual environment.
    """

    num_layers: int = 4
    hidden_size: int = 512
    num_heads: int = 8
    feed_forward_size: int = 2048
    vocabulary_size: int = 30522
    length: int = 128
    predictions: int = 20
    microbatch: int = 16
    dropout: float = 0.1
    rounds: int = 5
    round_seconds: float = 10.0
    reader_rows: int = 100_000
    memory_accumulation: int = 32
    time_accumulation: int = 8
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
