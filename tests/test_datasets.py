import doctest

import pandas as pd
import pytest
from reference_data import FOLDER, load_reference_data, load_truth

import bayeslmm.datasets
from bayeslmm.datasets import describe_dataset, list_datasets, load_dataset
from bayeslmm.exceptions import DataError

NAMES = [
    "bcg",
    "cake",
    "Dyestuff",
    "Dyestuff2",
    "ergoStool",
    "fev",
    "lecture_plants",
    "lecture_surgery",
    "Machines",
    "Oats",
    "Orthodont",
    "Pastes",
    "Penicillin",
    "periodontal",
    "Pixel",
    "Rail",
    "school_calendar",
    "sleepstudy",
]
OWN_COLUMNS = {"bcg", "periodontal", "school_calendar"}
"""Data whose columns have names of their own; figures of theirs are in test_meta_analysis.py."""

DTYPES = {"integer": "int64", "numeric": "float64"}


def test_list_datasets_names_every_data_set_once():
    table = list_datasets()
    assert list(table["name"]) == NAMES
    assert list(table.columns) == ["name", "rows", "columns", "description", "source"]
    assert table.notna().all().all()
    sleep = table.set_index("name").loc["sleepstudy"]
    assert sleep["rows"] == 180
    assert sleep["columns"] == "Reaction, Days, Subject"
    assert sleep["source"] == "R package lme4 1.1-31"


GAPS = {"fev": {"FEV1": 263}}
"""Missing values by column."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"fev", *OWN_COLUMNS}])
def test_values_and_levels_are_those_of_r(name):
    pd.testing.assert_frame_equal(load_dataset(name), load_reference_data(name))


@pytest.mark.parametrize("name", NAMES)
def test_description_fits_the_frame(name):
    info, frame = describe_dataset(name), load_dataset(name)
    assert info.name == name
    assert info.n_rows == len(frame)
    assert [column.name for column in info.columns] == list(frame.columns)
    for column in info.columns:
        assert column.description
        if column.type == "factor":
            assert tuple(frame[column.name].cat.categories) == column.levels
            assert frame[column.name].cat.ordered == column.ordered
        else:
            assert (
                frame[column.name].dtype == {"integer": "int64", "numeric": "float64"}[column.type]
            )
    lost = frame.isna().sum()
    assert lost[lost > 0].to_dict() == GAPS.get(name, {})


def test_trial_is_that_of_mmrm():
    frame, expected = load_dataset("fev"), pd.read_csv(FOLDER / "structures" / "fev_data.csv")
    factors = list(frame.columns[:5])
    plain = frame.astype(dict.fromkeys(factors, "str"))
    pd.testing.assert_frame_equal(plain, expected.astype(dict.fromkeys(factors, "str")))
    assert list(frame["ARMCD"].cat.categories) == ["PBO", "TRT"]
    assert list(frame["SEX"].cat.categories) == ["Male", "Female"]
    assert frame["USUBJID"].cat.categories[-1] == "PT200"
    info = describe_dataset("fev")
    assert "Apache License 2.0" in info.provenance
    assert info.source == "R package mmrm 0.3.18"


@pytest.mark.parametrize("name", NAMES)
def test_sources_are_given(name):
    info = describe_dataset(name)
    if name.startswith("lecture_"):
        assert "Simulated" in info.provenance
        assert not info.citations
    elif name == "fev":
        assert "Apache License" in info.provenance
        assert info.citations
    else:
        assert "GPL" in info.provenance
        assert info.citations
    assert name in str(info)
    assert info.provenance in str(info)


def test_order_of_levels_is_kept():
    assert list(load_dataset("Orthodont")["Sex"].cat.categories) == ["Male", "Female"]
    assert list(load_dataset("Oats")["Block"].cat.categories) == ["VI", "V", "III", "IV", "II", "I"]
    assert load_dataset("cake")["temperature"].cat.ordered


@pytest.mark.parametrize("name", ["lecture_plants", "lecture_surgery"])
def test_true_values_are_those_of_the_simulation(name):
    truth, values = load_truth(name), dict(describe_dataset(name).true_values)
    fixed = list(truth["true_values"]["fixed"].values())
    assert list(values.values())[: len(fixed)] == fixed
    for group, sd in truth["true_values"]["sd"].items():
        assert values[f"sd[{group}]"] == sd
    assert values["sigma"] == truth["true_values"]["sigma"]
    for group, effects in truth["random_effects"].items():
        for level, effect in effects.items():
            assert values[f"u[{group}, {level}]"] == effect


def test_measured_data_have_no_true_values():
    assert not describe_dataset("sleepstudy").true_values


def test_every_call_gives_a_new_frame():
    frame = load_dataset("Rail")
    frame.loc[0, "travel"] = -1.0
    assert load_dataset("Rail").loc[0, "travel"] == 55.0


@pytest.mark.parametrize("function", [load_dataset, describe_dataset])
def test_unknown_name_lists_the_valid_ones(function):
    with pytest.raises(DataError, match=r"no bundled data set 'sleepstdy'") as error:
        function("sleepstdy")
    message = str(error.value)
    assert "Did you mean 'sleepstudy'?" in message
    assert all(name in message for name in NAMES)


@pytest.mark.parametrize("name", ["dyestuff2", "DYESTUFF2"])
def test_wrong_case_is_recognised(name):
    with pytest.raises(DataError, match="Did you mean 'Dyestuff2'"):
        load_dataset(name)


@pytest.mark.parametrize("name", ["../datasets", "", "README", "sleepstudy.csv", None])
def test_anything_else_is_refused(name):
    with pytest.raises(DataError, match="no bundled data set"):
        load_dataset(name)


def test_examples_in_docstrings_run():
    result = doctest.testmod(bayeslmm.datasets)
    assert result.attempted > 0
    assert result.failed == 0
