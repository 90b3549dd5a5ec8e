"""What a sweep varies: values as Gin reads them, combinations, and draws."""

import math
import statistics

import gin
import pytest
from gin import config_parser

from launch.sweep.ranges import draw, parse_range
from launch.sweep.space import hash_of, key_of, make_space
from launch.sweep.trials import trial_name
from launch.sweep.values import canonical, split_list
from trainer.configuration.source import parse_value


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[1e-5, 3e-5]", ("1e-5", "3e-5")),
        ("(0,1,)", ("0", "1")),
        ("['a, b', \"it's\"]", ("'a, b'", '"it\'s"')),
        ("[(1, 2), [3], {'a': (1, 2)}]", ("(1, 2)", "[3]", "{'a': (1, 2)}")),
        ("[@adamw(), @scope/lamb(), @module.lion, %macro]", ("@adamw()", "@scope/lamb()", "@module.lion", "%macro")),
        ("[True, None, -0.5]", ("True", "None", "-0.5")),
        ("[\n  'é',\n  2,\n]", ("'é'", "2")),
    ],
)
def test_values_stay_the_texts_that_gin_reads(text, items):
    assert split_list(text) == items
    for item in items:
        assert repr(parse_value(item)) == canonical(item)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[adamw]", 'adamw: not a value that Gin reads, text needs quotes: "adamw"'),
        ("1e-5", "write a list of values"),
        ("[]", "write a list of values"),
        ("[1,, 2]", "write a list of values"),
        ("[1", "[1"),
        ("[1)", "write a list of values"),
        ("[1][2]", "write one list of values"),
        ("['a]", "'a"),
        ("[1 # x]", "cannot stand in a value"),
        ("[f(1)]", "f(1): not a value that Gin reads"),
        ("[@]", "'@' is no reference"),
        ("", "a value is missing"),
    ],
)
def test_what_gin_would_not_read_is_refused_with_the_text(text, expected):
    with pytest.raises(ValueError) as caught:
        split_list(text)
    assert expected in str(caught.value)


def test_texts_of_the_same_value_are_the_same_trial_in_any_order():
    first = (("learning_rate", "1e-5"), ("name", "'a'"), ("run.optimizer", "@adamw( )"))
    again = (("name", '"a"'), ("run.optimizer", "@adamw()"), ("learning_rate", "0.00001"))
    assert key_of(first) == key_of(again) and hash_of(first) == hash_of(again)
    for other in ("1e-4", "'1e-05'", "True"):
        assert key_of((("learning_rate", other),)) != key_of((("learning_rate", "1e-5"),))
    assert canonical("1") != canonical("True") != canonical("'True'")


def test_grid_combines_and_zip_goes_together_and_seeds_are_a_grid():
    space = make_space(
        grid=["optimizer=[@adamw(), @lamb()]"], zipped=["steps=[100, 200]", "global_batch=[32, 16]"], seeds="0,1,2"
    )
    points = list(space.points().values())
    assert len(points) == 2 * 2 * 3
    assert points[0] == (("optimizer", "@adamw()"), ("steps", "100"), ("global_batch", "32"), ("seed", "0"))
    assert {(dict(point)["steps"], dict(point)["global_batch"]) for point in points} == {("100", "32"), ("200", "16")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "nothing varies"),
        ({"grid": ["seed=[1]"], "seeds": "1,2"}, "seed is varied twice"),
        ({"grid": ["a=[1, 1.0, 1e0]"]}, "--grid a: 1.0 stands there twice"),
        ({"grid": ["=[1]"]}, "--grid '=[1]': write NAME="),
        ({"grid": ["learning rate=[1]"]}, "write NAME="),
        ({"grid": ["a=[x]"]}, "--grid a: x: not a value"),
        ({"zipped": ["a=[1, 2]", "b=[1]"]}, "all need as many: a has 2, b has 1"),
        ({"seeds": "0;1"}, "--seeds 0;1: write whole numbers"),
        ({"grid": ["a=[1]"], "trials": 3}, "--trials is the number of draws"),
        ({"random": ["a=uniform(0, 1)"], "trials": 0}, "--trials 0: at least 1"),
        ({"random": ["a=uniform(0, 1)"], "search": ["b=uniform(0, 1)"]}, "do not go together"),
        ({"search": ["b=uniform(0, 1)"], "grid": ["a=[1]"]}, "--search goes with --seeds alone"),
        ({"random": ["a=normal(0, 1)"]}, "--random a: normal(0, 1): write uniform(a, b)"),
        ({"random": ["a=uniform(1, 0)"]}, "the smaller one first"),
        ({"random": ["a=loguniform(0, 1)"]}, "needs numbers above 0"),
        ({"random": ["a=integer(0.5, 2)"]}, "needs whole numbers"),
        ({"random": ["a=choice(1, 1.0, 1)"]}, "a value stands there twice"),
    ],
)
def test_what_makes_no_space_is_refused_with_a_message(options, expected):
    with pytest.raises(ValueError) as caught:
        make_space(**options)
    assert expected in str(caught.value)


def test_more_draws_begin_with_the_same_ones():
    options = {"random": ["a=loguniform(1e-5, 1e-3)", "b=choice('x', @y())"], "seeds": "0,1"}
    few, many = (list(make_space(**options, trials=count).points().values()) for count in (5, 8))
    assert many[: len(few)] == few and len(few) == 10 and len(many) == 16
    others = make_space(**options, trials=5, random_seed=1).points().values()
    assert not set(others) & set(few)


@pytest.mark.parametrize(
    ("text", "quantile"),
    [
        ("uniform(2, 4)", lambda share: 2 + 2 * share),
        ("loguniform(1e-5, 1e-1)", lambda share: 10 ** (-5 + 4 * share)),
        ("integer(1, 4)", lambda share: math.floor(1 + 4 * share)),
        ("loginteger(1, 1000)", lambda share: math.floor(1001**share)),
        ("choice(0, 1, 2, 3)", lambda share: math.floor(4 * share)),
    ],
)
def test_draws_have_the_distribution_that_they_say(text, quantile):
    range_ = parse_range(text)
    count = 2000
    drawn = sorted(float(draw((("a", range_),), index, 0)[0][1]) for index in range(count))
    assert all(range_.holds(draw((("a", range_),), index, 0)[0][1]) for index in range(50))
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):  # a share's standard deviation is about 0.01
        low, high = quantile(max(0, share - 0.05)), quantile(min(0.999, share + 0.05))
        assert low <= drawn[int(share * count)] <= high
    assert range_.at(0.0) == range_.text(quantile(0)) if not range_.choices else range_.at(0) == "0"


def test_numbers_that_are_drawn_are_short_and_stay_in_the_range_and_keep_their_kind():
    range_ = parse_range("uniform(0.3333111, 7.001234)")
    assert range_.text(3.00000001) == "3.0"  # Gin would take 3 for a whole number
    assert range_.text(1 / 3) == "0.3333111" and range_.text(7.00123) == "7.001"
    assert range_.text(5.43219876) == "5.432"
    assert statistics.fmean(len(range_.at(index / 100)) for index in range(100)) < 7


def test_gin_reads_what_is_drawn():
    for text in ("uniform(0, 1)", "loguniform(1e-9, 1e9)", "integer(-3, 3)", "choice(@a(), 'b', (1, 2))"):
        for index in range(20):
            value = parse_range(text).at(index / 20)
            assert config_parser.ConfigParser(f"a.b = {value}", gin.config.ParserDelegate()) is not None
            parse_value(value)


def test_names_of_trials_are_readable_and_safe_in_paths():
    parameters = (
        ("finetune.learning_rate", "1e-5"),
        ("seed", "0"),
        ("run.optimizer", "@scope/lamb()"),
        ("data", '"../x y"'),
    )
    assert trial_name(7, parameters) == "007-learning_rate=1e-5-seed=0-optimizer=scope_lamb-data=.._x_y"
    assert trial_name(1, (("a.rate", "1"), ("b.rate", "''"))) == "001-a.rate=1-b.rate=empty"
    assert len(trial_name(1000, tuple((f"name{index}", "1") for index in range(40)))) <= 80
