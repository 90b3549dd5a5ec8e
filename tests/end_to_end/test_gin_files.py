"""Every gin file that is shipped parses, says what it is said to say, and runs."""

import dataclasses
import math
import pathlib
import re
import shutil
import typing

import numpy as np
import pytest
import tensorflow as tf
import trainer_process

from trainer.config import load_config
from trainer.configurables import CONFIGURABLES
from trainer.data.manifests import load_manifest
from trainer.data.records import decode_rows
from trainer.data.vocabulary import SPECIAL_TOKENS
from trainer.main import main
from trainer.models.encoder import padded_vocabulary_size
from trainer.models.encoder_with_heads import EncoderWithHeads
from trainer.weights.hugging_face import encoder_config

GIN = pathlib.Path(trainer_process.ROOT) / "gin"
FILES = sorted(str(path.relative_to(GIN)) for path in GIN.rglob("*.gin"))


class Published(typing.NamedTuple):
    """What was published of a model; the number of parameters in millions may count further heads than its gin file."""

    layers: int
    hidden_size: int
    heads: int
    width: int
    vocabulary: int
    millions: str | None = None
    counted: tuple = ()
    further: tuple = ()


def bert(*sizes, further=()):
    return Published(*sizes[:4], 30522, sizes[4], ("pooler",), further)


def electra(*sizes):
    return Published(*sizes[:4], 30522, sizes[4], ("replaced_token_detection",))


MLM = ("masked_language_model",)
# The papers are named at the head of each file. Sizes that no paper counts have none: NEZHA, RoFormer, and RoFormerV2 but
# for "300 million". ALBERT-xxlarge has 235 million in the paper, which the published weights are not.
MODELS = {
    "tiny": bert(2, 128, 2, 512, "4.4", further=MLM),
    "mini": bert(4, 256, 4, 1024, "11.3", further=MLM),
    "small": bert(4, 512, 8, 2048, "29.1", further=MLM),
    "medium": bert(8, 512, 8, 2048, "41.7", further=MLM),
    "base": bert(12, 768, 12, 3072, "110"),
    "large": bert(24, 1024, 16, 4096, "340"),
    "minilm_l3_h384": Published(3, 384, 12, 1536, 30522, "17", ("pooler",)),
    "minilm_l4_h384": Published(4, 384, 12, 1536, 30522, "19", ("pooler",)),
    "minilm_l6_h384": Published(6, 384, 12, 1536, 30522, "22", ("pooler",)),
    "minilm_l12_h384": Published(12, 384, 12, 1536, 30522, "33", ("pooler",)),
    "distilbert_base": Published(6, 768, 12, 3072, 30522, "66"),
    "roberta_base": Published(12, 768, 12, 3072, 50265, "125", ("pooler",)),
    "roberta_large": Published(24, 1024, 16, 4096, 50265, "355", ("pooler",)),
    "albert_base": Published(12, 768, 12, 3072, 30000, "12", ("pooler",)),
    "albert_large": Published(24, 1024, 16, 4096, 30000, "18", ("pooler",)),
    "albert_xlarge": Published(24, 2048, 16, 8192, 30000, "60", ("pooler",)),
    "albert_xxlarge": Published(12, 4096, 64, 16384, 30000, None, ("pooler",)),
    "albert_unshared_base": Published(12, 768, 12, 3072, 30000, "89", ("pooler",)),
    "electra_small": electra(12, 256, 4, 1024, "14"),
    "electra_base": electra(12, 768, 12, 3072, "110"),
    "electra_large": electra(24, 1024, 16, 4096, "335"),
    "nezha_base": Published(12, 768, 12, 3072, 21128, None, ("pooler",)),
    "nezha_large": Published(24, 1024, 16, 4096, 21128, None, ("pooler",)),
    "roformer_small": Published(6, 384, 6, 1536, 50000),
    "roformer_base": Published(12, 768, 12, 3072, 50000),
    "roformer_v2_small": Published(6, 384, 6, 1536, 12000),
    "roformer_v2_base": Published(12, 768, 12, 3072, 12000),
    "roformer_v2_large": Published(24, 1024, 16, 4096, 12000, "300"),
    "modernbert_base": Published(22, 768, 12, 1152, 50368, "149"),
    "modernbert_large": Published(28, 1024, 16, 2624, 50368, "395"),
}

# A step takes a laptop minutes or more memory than it has: fewer layers, each in its full size.
FEWER_LAYERS = {name: 1 if model.hidden_size >= 768 else 2 for name, model in MODELS.items()}
FEWER_LAYERS |= {"modernbert_base": 2, "modernbert_large": 2}  # a global and a local one
# The large ones differ from the base ones in sizes alone, as a test says: not every one of them must be run in its own.
NARROW = ("encoder.hidden_size=256", "encoder.num_heads=4", "encoder.intermediate_size=512")
NARROWER = {name: NARROW for name, model in MODELS.items() if model.hidden_size > 768 and name != "large"}


def chain(name):
    """The gin files of a run that has a file in it: one of a run by itself, others over that of pretraining."""
    over = "electra.gin" if name.startswith("models/electra_") else "pretrain.gin"
    return [over, name] if "/" in name else [name]


# Bindings that a file takes over from another and has no use for, since it replaces what they configure.
REPLACED = {
    "electra.gin": ("pretraining.",),
    "continue_pretraining.gin": ("encoder.",),
    "train_classification.gin": ("pretrained_encoder.",),
}


def required(name):
    """The parameters that must be given to a run with a file in it."""
    names = {"train_classification.gin": ("data", "vocabulary")}
    others = ("data", "initial_weights") if name.startswith(("finetune_", "continue_")) else ("data",)
    return [f"{each}='anywhere'" for each in names.get(name, others)]


def encoder_of(model):
    """The `EncoderConfig` of a gin file of a model."""
    files = chain(f"models/{model}.gin")
    return load_config(files, ["data='anywhere'"], configurables=CONFIGURABLES).call("run").task.encoder


def test_the_table_of_models_is_complete():
    assert {f"models/{name}.gin" for name in MODELS} == {name for name in FILES if name.startswith("models/")}


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_gin_file_parses_and_says_first_what_it_is_for(name):
    config = load_config(chain(name), required(name), configurables=CONFIGURABLES)
    run = config.call("run")
    assert run.global_batch > 0 and run.steps > 0
    replaced = ("adamw.", "linear_schedule.") if name.startswith("optimizers/") else ()
    replaced += REPLACED.get(chain(name)[0], ())
    assert [each for each in config.unused if not each.startswith(replaced)] == []
    text = (GIN / name).read_text()
    assert text.startswith("# ") and "python -m trainer --gin" in text.partition("\n\n")[0]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_has_the_published_size(model):
    encoder = encoder_of(model)
    sizes = (encoder.num_layers, encoder.hidden_size, encoder.num_heads, encoder.feed_forward_size)
    assert sizes == MODELS[model][:4]


def millions_of_parameters(encoder, vocabulary, heads):
    """How many parameters a model has, without the rows that pad our table of tokens."""
    with tf.Graph().as_default():  # in which nothing is allocated
        model = EncoderWithHeads(encoder, vocabulary, heads)
        model.build()
        count = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    per_token = encoder.token_size + ("masked_language_model" in heads and encoder.prediction_bias)
    return (count - (padded_vocabulary_size(vocabulary) - vocabulary) * per_token) / 1e6


def unit(number):
    """The size of the last digit of a number as it is written that tells something: 0.1 of 4.4, 10 of 110."""
    whole, _, fraction = number.partition(".")
    return 0.1 ** len(fraction) if fraction else 10 ** (len(whole) - len(whole.rstrip("0")))


@pytest.mark.parametrize("model", MODELS)
def test_a_model_has_as_many_parameters_as_its_file_says_and_as_published(model):
    published, encoder = MODELS[model], encoder_of(model)
    head = re.sub(r"\s*\n# ?", " ", (GIN / "models" / f"{model}.gin").read_text().partition("\n#\n")[0])
    said, tokens = re.search(r"About ([\d.]+) million parameters with ([\d,]+) tokens", head).groups()
    assert tokens == f"{published.vocabulary:,}"
    count = millions_of_parameters(encoder, published.vocabulary, published.counted)
    assert abs(count - float(said)) <= unit(said) / 2
    sizes = re.search(r"(\d+) layers, hidden size (\d+), (\d+) heads", head).groups()
    assert tuple(map(int, sizes)) == published[:3]
    if published.millions is not None:  # papers round up and down
        count = millions_of_parameters(encoder, published.vocabulary, published.counted + published.further)
        assert abs(count - float(published.millions)) < unit(published.millions)


def test_the_options_of_models_are_those_of_hugging_faces_configurations():
    transformers = pytest.importorskip("transformers", reason="compares with transformers: pip install '.[test]'")
    small = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    roberta = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    theirs = {
        "base": transformers.BertConfig(),
        "minilm_l6_h384": transformers.BertConfig(**small, num_attention_heads=12),
        "roberta_base": transformers.RobertaConfig(**roberta),
        "albert_xxlarge": transformers.AlbertConfig(),
        "electra_small": transformers.ElectraConfig(),
        "distilbert_base": transformers.DistilBertConfig(),
        "roformer_base": transformers.RoFormerConfig(),
        "roformer_small": transformers.RoFormerConfig(**small, num_attention_heads=6),
        "modernbert_base": transformers.ModernBertConfig(),
    }
    # Here ids of padding are those of our vocabularies, and rows are packed.
    ours_alone = {"padding_id": 0, "confine_attention": True}
    for name, config in theirs.items():
        expected = dataclasses.replace(encoder_config(config.to_dict()), **ours_alone)
        found = encoder_of(name)
        assert found.token_size == expected.token_size
        assert dataclasses.replace(found, embedding_size=expected.embedding_size) == expected, name


@pytest.mark.parametrize("family", ["roberta", "albert", "electra", "nezha", "roformer", "roformer_v2", "modernbert"])
def test_the_sizes_of_a_family_differ_in_size_alone(family):
    names = [name for name in MODELS if name.startswith(family) and name.rpartition("_")[0] == family]
    assert len(names) > 1
    sizes = ("num_layers", "hidden_size", "num_heads", "intermediate_size", "embedding_size")
    same = [dataclasses.replace(encoder_of(name), **dict.fromkeys(sizes, 2) | {"num_heads": 1}) for name in names]
    assert all(each == same[0] for each in same)


# Of one batch of random guesses among 185 pieces.
GUESSED_LOSS = (4.2, 6.5)


def run_one_step(files, tmp_path, small_corpus, *parameters, loss=GUESSED_LOSS):
    """Runs one step with the command line in this process, which has logical CPU devices already."""
    run_dir = tmp_path / "run"
    changes = (f"data='{small_corpus}'", "steps=1", "global_batch=2", "eval_every=None")
    code = main(trainer_process.trainer_arguments(files, run_dir, *changes, *parameters)[2:])
    records = trainer_process.metrics(run_dir)
    committed = trainer_process.committed_steps(run_dir)
    shutil.rmtree(run_dir)
    assert code == 0
    assert list(records) == [1] and committed == [1]
    assert records[1]["skipped"] == 0
    assert loss[0] < records[1]["loss"] < loss[1]


def test_the_quickstart_runs_a_step(tmp_path, small_corpus):
    run_one_step(["quickstart.gin"], tmp_path, small_corpus)


def classification_parameters(train, held_out, vocabulary):
    """The parameters of a run on tables of a text and a label without a header."""
    paths = {"data": train, "held_out": held_out, "vocabulary": vocabulary}
    return [f"{name}='{path}'" for name, path in paths.items()] + ["classification_data.column_names=['text', 'label']"]


def test_classification_runs_a_step_and_answers(tmp_path):
    texts = [f"{text} {number}" for number in range(4) for text in ("good", "bad")]
    (tmp_path / "train.tsv").write_text("".join(f"{text}\t{text.split()[0]}\n" for text in texts))
    pieces = [*SPECIAL_TOKENS, "good", "bad", *"0123"]
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    table, run_dir = tmp_path / "train.tsv", tmp_path / "run"
    files = ["train_classification.gin", "models/tiny.gin", "hardware/laptop.gin"]
    parameters = classification_parameters(table, table, tmp_path / "vocab.txt")
    parameters += ["steps=1", "global_batch=4", "encoder.num_layers=1", "encoder.hidden_size=32"]
    assert main(trainer_process.trainer_arguments(files, run_dir, *parameters)[2:]) == 0
    (record,) = trainer_process.metrics(run_dir).values()
    assert record["skipped"] == 0 and 0.4 < record["loss"] < 1.2  # guessing between two
    (evaluation,) = trainer_process.metrics(run_dir, "eval").values()
    assert {"loss", "accuracy", "f1", "f1_macro", "matthews_correlation"} <= evaluation.keys()
    paths = ("--mode", "predict", "--input", table, "--output", tmp_path / "answers.tsv")
    assert main(trainer_process.trainer_arguments([], run_dir, others=paths)[2:]) == 0
    header, *answers = [line.split("\t") for line in (tmp_path / "answers.tsv").read_text().splitlines()]
    assert header == ["text", "label", "probability_bad", "probability_good"]
    assert [answer[0] for answer in answers] == texts
    right = sum(text.split()[0] == label for text, label, *_ in answers)
    assert right / len(texts) == pytest.approx(evaluation["accuracy"])


@pytest.mark.slow  # compiles two programs one after the other
def test_pretraining_and_fine_tuning_go_on_from_weights_of_other_libraries(tmp_path, small_corpus):
    """A run is written as a folder of Hugging Face's, pretrained on, and fine-tuned; architecture and words are its own."""
    first, adapted, tuned = (tmp_path / name for name in ("first", "adapted", "tuned"))
    small = ("encoder.num_layers=1", "encoder.hidden_size=32", "global_batch=2", "eval_every=None")
    files = ["pretrain.gin", "models/tiny.gin", "hardware/laptop.gin"]
    trainer_process.train(files, first, f"data='{small_corpus}'", "steps=1", *small)
    exported = ("--mode", "export", "--format", "hugging_face", "--output", tmp_path / "exported")
    trainer_process.train([], first, others=exported)
    weights = f"initial_weights='{tmp_path / 'exported'}'"
    files = ["continue_pretraining.gin", "hardware/laptop.gin"]
    finished = trainer_process.train(files, adapted, f"data='{small_corpus}'", weights, "steps=2", *small[2:])
    assert "initialized anew" not in finished.output and "not used" not in finished.output
    shutil.rmtree(tmp_path / "exported")  # a run that goes on needs them no more
    trainer_process.train([], adapted, others=("--mode", "evaluate"))
    table = tmp_path / "train.tsv"
    table.write_text("text\tlabel\n" + "".join(f"{text} {n}\t{text}\n" for n in range(4) for text in ("good", "bad")))
    files = ["finetune_classification.gin", "hardware/laptop.gin"]
    parameters = (f"data='{table}'", f"held_out='{table}'", f"initial_weights='{adapted}'", "steps=2", "global_batch=4")
    finished = trainer_process.train(files, tuned, *parameters)
    assert f"{adapted}" in finished.output and "initialized anew: classifier/" in finished.output
    table.unlink()  # answers need no examples
    finished = trainer_process.train([], tuned, others=("--mode", "predict", "good 1"))
    assert "good 0." in finished.output and "bad 0." in finished.output


@pytest.mark.slow  # compiles, and trains for most of a minute
def test_classification_learns_real_reviews_from_random_weights(tmp_path):
    folder = pathlib.Path(trainer_process.ROOT).parent / "shared" / "data" / "zh"
    if not folder.exists():
        pytest.skip(f"{folder} is absent: it is real data that is not part of the project")
    reviews = [folder / "sentiment" / f"{split}.tsv" for split in ("train", "valid")]
    parameters = classification_parameters(*reviews, folder / "vocab.txt")
    parameters += ["steps=300", "eval_every=300"]
    files = ["train_classification.gin", "models/tiny.gin", "hardware/laptop.gin"]
    trainer_process.train(files, tmp_path / "run", *parameters)
    (evaluation,) = trainer_process.metrics(tmp_path / "run", "eval").values()
    assert evaluation["accuracy"] > 0.8, "the larger class has a share of 0.51"
    assert evaluation["f1"] > 0.8 and evaluation["matthews_correlation"] > 0.6


def unigram_loss(data):
    """The loss on held-out rows of a model that knows how frequent tokens are in the training rows, and nothing else."""
    manifest = load_manifest(data)
    counts = {}
    for split in ("train", "held_out"):
        paths = [f"{data}/{shard.name}" for shard in manifest.splits[split]]
        records = np.array([np.frombuffer(r, np.uint8) for r in tf.data.TFRecordDataset(paths).as_numpy_iterator()])
        ids = decode_rows(manifest.row_format, records).token_ids.reshape(-1)
        counts[split] = np.bincount(ids, minlength=manifest.vocabulary_size).astype(float)
        counts[split][: len(SPECIAL_TOKENS)] = 0  # these are never masked
    probabilities = (counts["train"] + 0.1) / (counts["train"] + 0.1).sum()
    return -(counts["held_out"] * np.log(probabilities)).sum() / counts["held_out"].sum()


@pytest.mark.slow  # prepares the embedded corpus and trains for a minute
def test_the_quickstart_learns_more_than_how_frequent_tokens_are(tmp_path):
    finished = trainer_process.train("quickstart.gin", tmp_path / "run", "steps=600")
    losses = [record["loss"] for record in trainer_process.metrics(tmp_path / "run", "eval").values()]
    assert losses == sorted(losses, reverse=True) and len(losses) == 3
    assert losses[-1] < unigram_loss(str(tmp_path / "run" / "data")) - 0.5, finished.text
    answers = finished.output.partition("the name of the [MASK] to open.")[2].splitlines()[1].split()
    probabilities = [float(word) for word in answers if word.startswith("0.")]
    assert len(probabilities) == 4 and probabilities == sorted(probabilities, reverse=True)


@pytest.mark.slow  # large layers take long to compile
@pytest.mark.parametrize("model", MODELS)
def test_a_model_of_every_size_runs_a_step_on_the_cpu(model, tmp_path, small_corpus):
    fewer = [f"encoder.num_layers={FEWER_LAYERS[model]}"]
    files = [*chain(f"models/{model}.gin"), "hardware/laptop.gin"]
    loss = GUESSED_LOSS
    if model.startswith("electra_"):  # with 50 times log 2 for guessing what was replaced
        fewer += ["generator/" + each for each in fewer]
        loss = tuple(bound + 50 * math.log(2) * factor for bound, factor in zip(loss, (0.8, 1.2), strict=True))
    if model.startswith("roformer_v2_"):  # with nothing between one layer and the table, [MASK] is taken for itself
        loss = (4.2, 9.0)
    run_one_step(files, tmp_path, small_corpus, *fewer, *NARROWER.get(model, ()), loss=loss)


@pytest.mark.slow  # compiles each
@pytest.mark.parametrize("optimizer", [name for name in FILES if name.startswith("optimizers/")])
def test_an_optimizer_overlay_runs_a_step(optimizer, tmp_path, small_corpus):
    files = ["pretrain.gin", "models/tiny.gin", "hardware/laptop.gin", optimizer]
    run_one_step(files, tmp_path, small_corpus, "encoder.num_layers=1", "encoder.hidden_size=32")


@pytest.mark.slow  # compiles twice; the overlay for laptops is in every run above
@pytest.mark.parametrize("hardware", [name for name in FILES if name.startswith("hardware/") and "laptop" not in name])
def test_a_hardware_overlay_runs_a_step_on_the_cpu(hardware, tmp_path, small_corpus):
    files = ["pretrain.gin", "models/tiny.gin", hardware]
    run_one_step(files, tmp_path, small_corpus, "strategy='cpu'", "devices=1")
