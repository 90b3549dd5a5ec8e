"""Configuration: what people write in gin files and on the command line is found, checked and kept."""

import dataclasses
import os
import subprocess
import sys
import textwrap
import typing

import gin
import pytest

from trainer.config import load_config
from trainer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Encoder:
    num_layers: int = 2
    hidden_size: int = 64
    activation: typing.Literal["gelu", "relu"] = "gelu"
    dropout: float = 0.1

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")


@dataclasses.dataclass(frozen=True)
class Schedule:
    peak: float
    warmup_steps: int = 0


def adamw(learning_rate, weight_decay=0.01, decay_on: list[str] | None = None):
    return ("adamw", learning_rate, weight_decay, decay_on)


def lamb(learning_rate=0.001):
    return ("lamb", learning_rate)


def pretraining(encoder: Encoder, loss_scale: float = 1.0):
    return ("pretraining", encoder, loss_scale)


def run(
    *,
    run_dir,
    task=None,
    optimizer=None,
    steps: int = 10,
    data: str = "",
    devices="all",
    shuffle_blocks=8,
    names=(),
    **more,
):
    return {"run_dir": run_dir, "task": task, "optimizer": optimizer, "steps": steps, "names": names, **more}


TABLE = {"run": run, "encoder": Encoder, "schedule": Schedule, "adamw": adamw, "lamb": lamb, "pretraining": pretraining}

BASE = """\
# Required
data = %gin.REQUIRED  # prepared data: a folder with a manifest
steps = 100
learning_rate = 1e-3

run.steps = %steps
run.data = %data
run.task = @pretraining()
run.optimizer = @adamw()
pretraining.encoder = @encoder()
adamw.learning_rate = %learning_rate
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return str(path)


def load(folder, text, *params, table=TABLE):
    write(folder / "my.gin", text)
    return load_config(["my.gin"], params, configurables=table)


def refused(folder, text, *params, table=TABLE):
    with pytest.raises(InputError) as caught:
        load(folder, text, *params, table=table)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_values_reach_the_function_with_later_overrides_winning(folder):
    write(folder / "large.gin", "encoder.num_layers = 24\nsteps = 500\n")
    write(folder / "my.gin", BASE)
    config = load_config(["my.gin", "large.gin"], ['data="d"', "steps=7"], configurables=TABLE)
    made = config.call("run", run_dir="r")
    assert made["steps"] == 7
    assert made["task"] == ("pretraining", Encoder(num_layers=24), 1.0)
    assert made["optimizer"] == ("adamw", 1e-3, 0.01, None)


def test_include_takes_effect_where_it_stands(folder):
    write(folder / "size.gin", "encoder.num_layers = 24\nencoder.hidden_size = 1024\n")
    text = BASE + "encoder.num_layers = 1\ninclude 'size.gin'\nencoder.hidden_size = 8\n"
    config = load(folder, text, 'data="d"')
    assert config.value("encoder.num_layers") == 24
    assert config.value("encoder.hidden_size") == 8
    assert config.origin("encoder.num_layers") == "size.gin:1"
    assert config.origin("run.steps") == "my.gin:3"
    assert config.origin("encoder.dropout") == "default"


def test_included_file_is_found_beside_the_file_that_includes_it(folder):
    write(folder / "elsewhere" / "size.gin", "run.steps = 3\n")
    path = write(folder / "elsewhere" / "main.gin", "include 'size.gin'\n")
    assert load_config([path], configurables=TABLE).value("run.steps") == 3


def test_missing_file_names_what_is_near(folder):
    write(folder / "pretrain.gin", "run.steps = 1")
    with pytest.raises(
        InputError, match=r'"pretrian\.gin": there is no such file.*Did you mean "pretrain.gin"'
    ) as caught:
        load_config(["pretrian.gin"], configurables=TABLE)
    assert "Shipped gin files" in str(caught.value)
    assert 'my.gin:1: include "nothing.gin"' in refused(folder, "include 'nothing.gin'\n")


def test_file_that_includes_itself_is_refused(folder):
    write(folder / "other.gin", "include 'my.gin'\n")
    assert '"my.gin" includes itself (through my.gin -> other.gin)' in refused(folder, "include 'other.gin'\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run.data = my/folder", 'Text needs quotes: run.data = "my/folder"'),
        ("run.steps = ", "The value after run.steps = is missing"),
        ("run.names = true", "Write run.names = True"),
        ("run.steps 5", "Expected name=value"),
        ('run.data = "unfinished', "bad.gin:2: run.data"),
        ("run.names = [1, 2", "bad.gin:"),
        ("run.names = [1\nrun.data = foo", "A bracket may be open above this line"),
        ("run.names = $x", "bad.gin:2: run.names = $x"),
    ],
)
def test_syntax_error_shows_the_line_and_what_to_write(folder, line, expected):
    write(folder / "bad.gin", f"run.steps = 3\n{line}\n")
    with pytest.raises(InputError) as caught:
        load_config(["bad.gin"], configurables=TABLE)
    assert expected in str(caught.value)
    assert "bad.gin:" in str(caught.value)


@pytest.mark.parametrize("text", ["data=my/folder", "data=my", "data=~/x", "data=./x"])
def test_text_without_quotes_on_the_command_line_is_shown_with_quotes(folder, text):
    message = refused(folder, BASE, text)
    assert f"""--gin_param 'data="{text.removeprefix("data=")}"'""" in message


def test_parameter_without_value_is_refused(folder):
    assert "--gin_param" in refused(folder, BASE, "steps")
    assert "name=value" in refused(folder, BASE, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("runn.steps = 5", 'no configurable "runn". Did you mean "run"?'),
        ("adamw.learning_rat = 5", '"adamw" has no parameter "learning_rat". Did you mean "learning_rate"?'),
        ("pretraining.encoder = @encodr()", 'no configurable "encodr". Did you mean "encoder"?'),
        ("run.names = [1, {'a': @encodr}]", 'no configurable "encodr". Did you mean "encoder"?'),
        ("encoder:\n  num_layer = 5", '"encoder" has no parameter "num_layer". Did you mean "num_layers"?'),
        ("run.names = %stps", 'no macro "stps". Did you mean "steps"?'),
        ("stepz = 5", 'nothing refers to a macro "stepz". Did you mean "steps"?'),
        ("weight_decay = 5\nadamw.weight_decay = 0.1", 'a macro "weight_decay". Did you mean adamw.weight_decay?'),
        ("a = %b\nb = %a\nrun.names = %a", 'the macro "a" is defined by itself'),
    ],
)
def test_misspelling_is_refused_with_its_place_and_the_right_name(folder, line, expected):
    message = refused(folder, BASE.replace("%gin.REQUIRED", "'d'") + line + "\n")
    assert expected in message
    assert "my.gin:12" in message or "my.gin:13" in message


def test_misspelling_on_the_command_line_is_refused_with_its_text(folder):
    message = refused(folder, BASE, 'data="d"', "stepz=5")
    assert message == '--gin_param stepz=5: nothing refers to a macro "stepz". Did you mean "steps"?'


def test_all_misspellings_are_reported_at_once(folder):
    message = refused(folder, "runn.steps = 1\nrun.data = @encodr()\nencoder.layers = 2\n")
    assert "runn" in message and "encodr" in message and '"layers"' in message


def test_modules_of_configurables_that_are_not_named_are_not_imported(folder):
    write(folder / "my.gin", "run.steps = 3\n")
    table = {**TABLE, "heavy": "a_module_that_is_not_there:thing", "join": "posixpath:join"}
    assert load_config(["my.gin"], configurables=table).value("run.steps") == 3
    with pytest.raises(ModuleNotFoundError):
        load_config(["my.gin"], ["run.task = @heavy()"], configurables=table)


def test_required_values_are_all_listed_with_comment_and_how_to_set_them(folder):
    message = refused(folder, BASE.replace("steps = 100", "# optimizer steps\nsteps = %gin.REQUIRED"))
    assert "2 values must be chosen" in message
    assert "data (my.gin:2): prepared data: a folder with a manifest" in message
    assert """--gin_param 'data="..."'""" in message
    assert "steps (my.gin:4): optimizer steps" in message
    assert "--gin_param 'steps=1000'" in message


def test_required_parameter_of_an_object_that_is_made_is_named(folder):
    message = refused(folder, "run.task = @schedule()\n")
    assert "schedule.peak: schedule cannot be made without it (my.gin:1: run.task)" in message
    assert "--gin_param 'schedule.peak=0.1'" in message


def test_required_value_of_what_the_run_does_not_use_may_stay_open(folder):
    config = load(folder, "run.steps = 1\nschedule.peak = %gin.REQUIRED\n")
    assert config.unused == ["schedule.peak (my.gin:2)"]


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ('steps="200"', "run.steps must be a whole number, got '200'. Write 200."),
        ("steps=1e6", "run.steps must be a whole number, got 1000000.0. Write 1000000."),
        ("steps=True", "run.steps must be a whole number, got True."),
        ("data=5", "run.data must be text in quotes, got 5. Write '5'."),
        ('encoder.activation="gleu"', "must be one of 'gelu', 'relu', got 'gleu'. Did you mean \"gelu\"?"),
        ("run.devices=4", None),  # the default is "all", without an annotation
        ('encoder.hidden_size="auto"', "must be a whole number"),
        ('run.shuffle_blocks="64"', "run.shuffle_blocks must be a number, got '64'. Write 64."),
        ('run.shuffle_blocks="auto"', None),
        ("pretraining.encoder=@encoder", "a configurable that makes Encoder, @name(), got @encoder. Write @encoder()"),
        ("pretraining.encoder=@schedule()", "must be a configurable that makes Encoder"),
        ('pretraining.encoder="bert"', "must be a configurable that makes Encoder"),
        ('adamw.weight_decay="0.1"', "adamw.weight_decay must be a number, got '0.1'. Write 0.1."),
        ("adamw.decay_on=[1]", "adamw.decay_on must be a list of items, each text in quotes or None, got [1]."),
        ("adamw.decay_on=('a', 'b')", None),
        ("encoder.dropout=0", None),
    ],
)
def test_values_of_the_wrong_kind_are_refused_and_others_are_not(folder, parameter, expected):
    text = BASE.replace("%gin.REQUIRED", "'d'") + "schedule.peak = 1.0\n"
    if expected is None:
        load(folder, text, parameter)
    else:
        message = refused(folder, text, parameter)
        assert expected in message
        assert "--gin_param" in message


def test_refusal_by_a_dataclass_says_where_the_value_was_set(folder):
    config = load(folder, "d = 0.5\nrun.task = @encoder()\nencoder.dropout = %d\nencoder.num_layers = 3\n", "d=1.5")
    with pytest.raises(InputError) as caught:
        config.call("run", run_dir="r")
    assert str(caught.value) == (
        "encoder: dropout must be at least 0 and below 1, got 1.5\n  encoder.dropout = 1.5  (--gin_param d=1.5)"
    )


def test_root_that_is_a_class_refuses_in_the_same_way(folder):
    config = load(folder, "run.dropout = 2.0\n", table={"run": Encoder})
    with pytest.raises(InputError, match=r"got 2\.0\n  run\.dropout = 2\.0  \(my\.gin:1\)"):
        config.call("run")
    with pytest.raises(InputError, match=r"run: .*unexpected keyword argument 'other'"):
        config.call("run", other=1)


def test_error_of_the_called_function_itself_is_not_taken_for_a_wrong_configuration(folder):
    def broken(steps=1):
        raise ValueError("inside")

    with pytest.raises(ValueError, match=r"^inside$"):
        load(folder, "run.steps = 2\n", table={"run": broken}).call("run")


def test_value_that_the_program_gives_must_not_be_bound(folder):
    config = load(folder, "run.run_dir = 'x'\n")
    with pytest.raises(InputError, match=r"my\.gin:1: run.run_dir is set by the program itself"):
        config.call("run", run_dir="r")


def test_setting_without_effect_is_reported_in_files_and_refused_on_the_command_line(folder):
    text = BASE + "lamb.learning_rate = 2.0\nunused/encoder.dropout = 0.3\n"
    config = load(folder, text, 'data="d"')
    assert config.unused == ["lamb.learning_rate (my.gin:12)", "unused/encoder.dropout (my.gin:13)"]
    assert "lamb.learning_rate=1.0 has no effect" in refused(folder, text, 'data="d"', "lamb.learning_rate=1.0")
    overridden = text + "run.steps = 5\n"
    assert "steps=200 has no effect" in refused(folder, overridden, 'data="d"', "steps=200")


SCOPED = """\
width = 32
both = [@a/encoder(), {"x": @encoder()}, %width]
layer = @encoder()
run.task = %both
run.optimizer = @b/pretraining()
run.names = (%layer, -1, 1e999, "it's \\"quoted\\" # 1", None, True)
pretraining.encoder = @encoder()
encoder.hidden_size = %width
a/encoder.num_layers = 5
b/encoder.num_layers = 6
layer/encoder.num_layers = 7
"""


def test_scopes_macros_and_containers_are_evaluated_as_gin_does(folder):
    config = load(folder, SCOPED)
    by_gin = gin.get_bindings("trainer.run")
    assert config.arguments("run") == by_gin
    assert by_gin["task"][0] == Encoder(5, 32)
    assert by_gin["optimizer"] == ("pretraining", Encoder(6, 32), 1.0)
    assert by_gin["names"][0] == Encoder(7, 32)


def test_reference_without_call_is_filled_in_when_it_is_called(folder):
    config = load(folder, "run.task = @b/lamb\nb/lamb.learning_rate = 3.0\n")
    assert config.arguments("run")["task"]() == ("lamb", 3.0)


def test_object_that_needs_itself_is_refused(folder):
    config = load(folder, "run.task = @pretraining()\npretraining.encoder = @pretraining()\n")
    with pytest.raises(InputError, match="needs itself"):
        config.arguments("run")


@pytest.mark.parametrize("text", [BASE.replace("%gin.REQUIRED", "'d'"), SCOPED])
def test_resolved_text_is_a_gin_file_that_resolves_to_the_same(folder, text):
    first = load(folder, text)
    arguments = first.arguments("run")
    write(folder / "config.gin", first.text)
    second = load_config(["config.gin"], configurables=TABLE)
    assert second.arguments("run") == arguments
    assert second.differences(first.text) == first.differences(second.text) == []
    assert second.fingerprint() == first.fingerprint()
    third = load_config(["config.gin"], ["encoder.hidden_size=16"], configurables=TABLE)
    assert third.differences(first.text) == [
        f"encoder.hidden_size: {first.value('encoder.hidden_size')} -> 16",
    ]


def test_resolved_text_says_where_each_value_came_from(folder):
    config = load(folder, BASE + "lamb.learning_rate = 2.0\n", 'data="d"')
    lines = {line.split("  #")[0].rstrip(): line.rpartition("  # ")[2] for line in config.text.splitlines()}
    assert lines["data = 'd'"] == "--gin_param"
    assert lines["learning_rate = 0.001"] == "my.gin:4"
    assert lines["run.steps = %steps"] == "my.gin:6"
    assert lines["# adamw.weight_decay = 0.01"] == "default"
    assert lines["# lamb.learning_rate = 2.0"] == "my.gin:12"
    assert "# run.run_dir: given by the program" in config.text
    assert config.text == load(folder, BASE + "lamb.learning_rate = 2.0\n", 'data="d"').text


def test_differences_are_of_values_not_of_how_they_are_written(folder):
    old = load(folder, BASE, 'data="d"').text
    without_macro = BASE.replace("\nsteps = 100\n", "\n").replace("%steps", "100")
    same = load(folder, without_macro + "pretraining.loss_scale = 1\n", 'data="d"')
    assert same.differences(old) == []
    other = load(folder, BASE, 'data="d"', "steps=200", "encoder.dropout=0.2", "run.devices=2")
    assert other.differences(old, free=["run.devices"]) == ["encoder.dropout: 0.1 -> 0.2", "run.steps: 100 -> 200"]
    assert other.differences(old, free=["run.*", "encoder.dropout"]) == []
    lamb_text = BASE.replace("@adamw()", "@lamb()").replace("adamw.", "lamb.")
    assert "run.optimizer: @adamw() -> @lamb()" in load(folder, lamb_text, 'data="d"').differences(old)


def test_fingerprint_changes_with_values_that_are_not_free(folder):
    def fingerprint(*params):
        return load(folder, BASE, 'data="d"', *params).fingerprint(free=["run.devices"])

    assert fingerprint() == fingerprint("steps=100") == fingerprint("run.devices=3")
    assert fingerprint() != fingerprint("steps=101")


def test_default_that_changed_between_versions_is_a_difference_and_a_new_parameter_is_not(folder):
    def newer(steps=20, seed=0, extra=1):
        return None

    def older(steps=10, seed=0):
        return None

    old = load(folder, "run.seed = 5\n", table={"run": older}).text
    assert load(folder, "run.seed = 5\n", table={"run": newer}).differences(old) == ["run.steps: 10 -> 20"]


def test_names_can_be_given_to_other_objects_in_one_process(folder):
    assert load(folder, "run.x = @encoder()\n").arguments("run")["x"] == Encoder()
    table = {"run": run, "encoder": Schedule}
    assert load(folder, "run.x = @encoder()\nencoder.peak = 1.0\n", table=table).arguments("run")["x"] == Schedule(1.0)
    assert "num_layers" in refused(folder, "encoder.num_layers = 1\n", table=table)


def test_module_of_the_users_own_can_be_imported_and_configured(folder, monkeypatch):
    write(
        folder / "my_own_task.py",
        """
        import gin

        @gin.configurable
        def my_task(width=3):
            return ("mine", width)
        """,
    )
    monkeypatch.syspath_prepend(str(folder))
    config = load(folder, "import my_own_task\nrun.task = @my_task()\nmy_task.width = 4\n")
    assert config.arguments("run")["task"] == ("mine", 4)
    assert load(folder, config.text).arguments("run")["task"] == ("mine", 4)
    message = refused(folder, "import my_own_task\nmy_task.widht = 4\n")
    assert '"my_task" has no parameter "widht". Did you mean "width"?' in message
    assert "no module 'no_such_thing'" in refused(folder, "import no_such_thing\n")


def test_only_the_configuration_knows_gin():
    """The library works without Gin: importing it must not import Gin."""
    modules = "trainer, trainer.errors, trainer.storage, trainer.data.records, trainer.data.manifests"
    code = f"import {modules}, sys; sys.exit('gin' in sys.modules)"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
