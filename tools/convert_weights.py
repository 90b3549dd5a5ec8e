"""Looks at weights, changes their vocabulary or positions, and writes them in other formats.

    python -m tools.convert_weights WEIGHTS                                    # what is in it?
    python -m tools.convert_weights WEIGHTS OUTPUT --to hugging_face

WEIGHTS is a run directory or checkpoint of this trainer; a folder of Hugging Face's (config.json, model.safetensors or
pytorch_model.bin); a TensorFlow 1 checkpoint of BERT, ALBERT, ELECTRA, NEZHA or RoFormer (Google's or bert4keras's names);
a .keras file, or .weights.h5 beside model.json. Local or gs://. docs/weights.md has more.
"""

import argparse
import json
import math

from rich.console import Console

from tools import command_line
from trainer import storage
from trainer.data.vocabulary import load_vocabulary
from trainer.errors import InputError
from trainer.weights import surgery
from trainer.weights.opening import open_weights
from trainer.weights.writing import FORMATS, write_weights


def parser():
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.convert_weights", description=__doc__, formatter_class=command_line.HelpFormatter
    )
    result.add_argument("weights", metavar="WEIGHTS", help="what to read")
    result.add_argument("output", metavar="OUTPUT", nargs="?", help="a new folder to write to; none to look only")
    result.add_argument("--to", choices=FORMATS, help="format to write")
    result.add_argument("--config", metavar="FILE", help="configuration, where it does not lie beside the weights")
    result.add_argument(
        "--architecture", metavar="NAME", help="type of model to write, such as bert; as it fits if not given"
    )
    result.add_argument(
        "--allow_unused", metavar="REGEX", action="append", default=[], help="unknown tensors that may be left out"
    )
    result.add_argument("--all", action="store_true", help="show every tensor, and where it comes from")
    vocabulary = result.add_argument_group("vocabulary (the output bias follows)")
    vocabulary.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="another vocab.txt: known pieces keep their rows, others begin as the mean of the pieces they are made of",
    )
    vocabulary.add_argument("--keep_tokens", metavar="FILE", help="JSON list of the ids to keep, in their new order")
    vocabulary.add_argument(
        "--compound_tokens",
        metavar="FILE",
        help="JSON list of lists of ids, one a token to append, which begins as their mean; ids as --keep_tokens makes them",
    )
    vocabulary.add_argument("--vocabulary_size", metavar="N", type=int, help="append unused tokens up to so many")
    positions = result.add_argument_group("positions")
    positions.add_argument("--max_length", metavar="N", type=int, help="number of learned positions")
    positions.add_argument(
        "--extend_by", choices=("hierarchical", "repeat"), default="hierarchical", help="how new ones begin"
    )
    layers = result.add_argument_group("layers")
    layers.add_argument(
        "--unshare_layers", action="store_true", help="give each layer its own copy of the one that all share (ALBERT)"
    )
    result.add_argument("--seed", metavar="N", type=int, default=0, help="of rows that begin at random")
    return result


def _json_list(path):
    if not storage.exists(path):
        raise InputError(f"there is no file {path}")
    try:
        content = storage.read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, list):
        raise InputError(f"{path} must hold a list, it holds {json.dumps(content)[:60]}")
    return content


def _changed(source, options, report):
    """Returns the source with the changes that the options ask for."""
    tokens = options.keep_tokens or options.compound_tokens
    if sum(option is not None for option in (options.vocabulary, tokens, options.vocabulary_size)) > 1:
        raise InputError(
            "--vocabulary, --keep_tokens with --compound_tokens, and --vocabulary_size exclude one another"
        )
    if options.vocabulary:
        source, counts = surgery.change_vocabulary(source, load_vocabulary(options.vocabulary).pieces, options.seed)
        report(
            f"vocabulary: {counts['kept']:,} pieces kept, {counts['composed']:,} begin as the mean of others, "
            f"{counts['new']:,} at random"
        )
    elif tokens:
        kept = _json_list(options.keep_tokens) if options.keep_tokens else None
        compounds = _json_list(options.compound_tokens) if options.compound_tokens else ()
        files, source = source.description.tokenizer_files, surgery.keep_tokens(source, kept, compounds)
        report(f"vocabulary: {source.description.vocabulary_size:,} tokens, {len(compounds):,} of them compound")
        if files and not source.description.tokenizer_files:
            names = ", ".join(path.rpartition("/")[2] for path in files)
            report(f"  left out, its ids are others now: the tokenizer ({names})")
    elif options.vocabulary_size is not None:
        source = surgery.grow_vocabulary(source, options.vocabulary_size, options.seed)
        report(f"vocabulary: {source.description.vocabulary_size:,} tokens")
    if options.max_length is not None:
        source = surgery.change_positions(source, options.max_length, options.extend_by)
        report(f"positions: {source.description.encoder.max_length:,}")
    if options.unshare_layers:
        source = surgery.unshare_layers(source)
        report(f"layers: {source.description.encoder.num_layers}, each with weights of its own")
    return source


def _describe(source, report, every_tensor):
    description, encoder = source.description, source.description.encoder
    report(f"{source.path}: {source.kind}")
    report(
        f"  encoder: {encoder.num_layers} layers{' (one, shared)' if encoder.share_layers else ''}, hidden size "
        f"{encoder.hidden_size}, {encoder.num_heads} heads, feed-forward {encoder.feed_forward_size}, "
        f"{encoder.positions} positions up to {encoder.longest_row:,}"
    )
    case = {True: "lower-cased", False: "cased", None: "case unknown"}[description.lower_case]
    known = f"WordPiece, {case}" if description.pieces is not None else "no WordPiece vocabulary beside it"
    report(f"  vocabulary: {description.vocabulary_size:,} tokens ({known})")
    heads = sorted({name.partition("/")[0] for name in source.names} - {"encoder"})
    report(
        f"  heads: {', '.join(heads) or 'none'}"
        + (f"; classes: {', '.join(description.labels)}" if description.labels else "")
    )
    if every_tensor:
        for name in source.names:
            report(f"  {name} {list(source.shape(name))} <- {source.origin(name)}")
    total = sum(math.prod(source.shape(name)) for name in source.names)
    report(f"  {len(source.names)} tensors, {total:,} numbers")
    if source.ignored:
        report(f"  {len(source.ignored)} others say nothing about the model (an optimizer's, counters, copies)")
    for name in source.unknown:
        report(f"  unknown: {name}")


def main(arguments):
    """Runs the command."""
    options = parser().parse_args(arguments)
    if bool(options.output) != bool(options.to):
        raise InputError("OUTPUT and --to belong together: where to, and as what")
    console = Console(highlight=False, soft_wrap=True)

    def report(line):
        console.print(line, markup=False)

    source = _changed(open_weights(options.weights, options.config), options, report)
    _describe(source, report, options.all)
    if options.output:
        left_out = write_weights(source, options.output, options.to, options.architecture, options.allow_unused)
        report(f"written to {options.output} as {options.to}")
        if left_out:
            report(f"  left out, the format has no place for them: {', '.join(left_out)}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
