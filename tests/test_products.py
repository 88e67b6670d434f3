"""Cross-products of sites: made apart, sent as files, added and fitted as the pooled rows."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle

import numpy as np
import pandas as pd
import pytest
from slow_cases import one_in
from test_beyond_memory import CRITERION, DRAWS, MODELS, OTHERS, assert_same_model

import bayeslmm as blm
from bayeslmm import CrossProducts
from bayeslmm.__main__ import main
from bayeslmm.data.sources import frames_source
from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.exceptions import BayesLMMError, DataError, FormulaError, StorageError
from bayeslmm.formula.grammar import parse
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.residual import parse_residual
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.likelihood.parts import read_part
from bayeslmm.likelihood.withheld import bounded
from bayeslmm.storage.parts import pack_part, unpack_part
from bayeslmm.storage.products import MAGIC

TRIAL = "y ~ x * arm + sex + (x | ward)"
LEVELS = {"arm": ["control", "treated"], "sex": ["f", "m"]}


def trial(n=400, seed=0):
    """Rows of five sites with wards; the third has one arm only."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"site": np.arange(n) % 5, "x": rng.normal(50, 10, n)})
    frame["arm"] = rng.choice(LEVELS["arm"], n)
    frame.loc[frame["site"] == 2, "arm"] = "control"
    frame["sex"] = rng.choice(LEVELS["sex"], n)
    frame["ward"] = [f"{s}-{w}" for s, w in zip(frame["site"], rng.integers(0, 4, n), strict=True)]
    own = pd.Series(rng.normal(size=20), sorted(set(frame["ward"])))
    effects = 0.1 * frame["x"] + 0.5 * (frame["arm"] == "treated") + frame["ward"].map(own)
    frame["y"] = effects + rng.normal(size=n)
    frame.loc[frame["site"] == 4, "x"] = frame["x"].where(rng.random(n) < 0.8)
    return frame


def sites(frame):
    return [own for _, own in frame.groupby("site")]


def trial_parts(frame=None, **options):
    frame = trial() if frame is None else frame
    options = {"levels": LEVELS, **options}
    return [CrossProducts.of(TRIAL, own, **options) for own in sites(frame)]


def cut(frame, count, seed):
    own = np.random.default_rng(seed).integers(0, count, len(frame))
    return [frame[own == i] for i in range(count) if np.any(own == i)]


def sent(products, folder, **options):
    """What a site's file has."""
    path = folder / "site.products"
    products.save(path, overwrite=True, **options)
    return CrossProducts.load(path)


def in_some_order(parts, seed):
    """Their sum in a random tree."""
    rng, parts = np.random.default_rng(seed), list(parts)
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        parts = [p for k, p in enumerate(parts) if k not in (i, j)] + [parts[i] + parts[j]]
    return parts[0]


# --- equal to the pooled rows ----------------------------------------------------------


@pytest.mark.parametrize("name", one_in(3, MODELS))
def test_sites_add_up_to_the_pooled_rows(name, tmp_path):
    frame = blm.load_dataset(name)
    whole = CrossProducts.of(MODELS[name], frame)
    parts = [CrossProducts.of(MODELS[name], own, like=whole) for own in cut(frame, 4, 1)]
    found = in_some_order([sent(part, tmp_path) for part in parts], seed=2)
    pooled = blm.LMM(MODELS[name], frame)
    assert (found.n, len(found.parts)) == (pooled.nobs, len(parts))
    assert_same_model(pooled, blm.LMM.from_products(found))


@pytest.mark.parametrize("formula", one_in(3, OTHERS))
def test_transforms_are_those_of_like(formula, tmp_path):
    frame = blm.load_dataset("sleepstudy")
    first = sent(CrossProducts.of(formula, frame.sample(frac=1.0, random_state=1)), tmp_path)
    parts = [CrossProducts.of(formula, own, like=first) for own in cut(frame, 3, 5)]
    found = CrossProducts.total(sent(part, tmp_path) for part in parts)
    assert_same_model(blm.LMM(formula, frame), blm.LMM.from_products(found), tolerance=1e-8)


def test_sites_agree_by_declared_levels(tmp_path):
    frame = trial()
    parts = [sent(part, tmp_path, smallest_cell=2) for part in trial_parts(frame)]
    pooled, model = blm.LMM(TRIAL, frame), blm.LMM.from_products(sum(parts))
    assert_same_model(pooled, model)
    tests = [own.reml().anova() for own in (pooled, model)]  # at numbers near the means
    np.testing.assert_allclose(tests[1].to_numpy(), tests[0].to_numpy(), rtol=1e-6)
    means = [own.reml().means("arm", weights="proportional").table() for own in (pooled, model)]
    np.testing.assert_allclose(means[1]["estimate"], means[0]["estimate"], rtol=1e-8)
    far = {"x": [-1e3, 1e3]}
    curves = [own.reml().plot.predictions("x", at=far, backend="none") for own in (pooled, model)]
    assert ["beyond" in own.viz for own in curves] == [True, False]  # where data end is withheld
    draws = [own.fit(random_seed=1, draws=50, chains=2) for own in (pooled, model)]
    for name in ("beta", "sigma", "sd_ward", "u_ward"):
        one, two = (own.data.posterior[name].to_numpy() for own in draws)
        np.testing.assert_allclose(two, one, rtol=DRAWS, atol=DRAWS * np.abs(one).max())
    again = tmp_path / "fit.nc"
    draws[1].save(again)
    assert blm.load(again).fixef().equals(draws[1].fixef())


def test_order_of_declared_levels_is_that_of_categories():
    frame = trial()
    order = ["treated", "control"]
    parts = trial_parts(frame, levels={**LEVELS, "arm": order})
    pooled = frame.assign(arm=pd.Categorical(frame["arm"], order))
    assert parts[2].coefs == blm.LMM(TRIAL, pooled).design.coefs
    found = blm.LMM.from_products(CrossProducts.total(parts)).reml().criterion
    assert found == pytest.approx(blm.LMM(TRIAL, pooled).reml().criterion, abs=CRITERION)


def test_weights_offsets_functions_and_priors(tmp_path):
    frame = trial()
    frame["w"] = np.random.default_rng(1).uniform(0.5, 2.0, len(frame))
    functions = {"twice": lambda x: 2 * x}
    formula = "log(y + 20) ~ twice(x) + arm + offset(x / 100) + (1 | ward)"
    options = {"weights": "w", "functions": functions, "levels": {"arm": LEVELS["arm"]}}
    parts = [CrossProducts.of(formula, own, **options) for own in sites(frame)]
    paths = [tmp_path / f"{i}.products" for i in range(len(parts))]
    for part, path in zip(parts, paths, strict=True):
        part.save(path, smallest_cell=3)
    with pytest.raises(StorageError, match="functions="):
        CrossProducts.load(paths[0])
    loaded = [CrossProducts.load(path, functions=functions) for path in paths]
    fixed = {"sigma": 0.05}
    pooled = blm.LMM(formula, frame, weights="w", functions=functions, fixed=fixed, priors="flat")
    found = blm.LMM.from_products(sum(loaded), fixed=fixed, priors="flat")
    assert_same_model(pooled, found)
    like = CrossProducts.of(formula, frame, weights="w", like=loaded[0])
    assert like.n == loaded[0].n + sum(part.n for part in loaded[1:])


def test_data_of_any_kind_are_read(tmp_path):
    frame = trial()
    frame.to_parquet(tmp_path / "rows.parquet")
    chunks = [frame.iloc[:3].assign(x=np.nan), frame.iloc[3:90], frame.iloc[90:]]
    known = {CrossProducts.of(TRIAL, frame.iloc[3:], levels=LEVELS).coefs}
    for data in (str(tmp_path / "rows.parquet"), iter(chunks), frame.to_dict("list"), chunks):
        found = CrossProducts.of(TRIAL, data, levels=LEVELS)
        assert found.n + found.n_dropped == len(frame)
        assert {found.coefs} == known


def test_levels_of_numbers_and_truth_values():
    frame = trial().assign(visit=np.arange(400) % 4, old=np.arange(400) % 3 == 0)
    formula = "y ~ C(visit) + old + (1 | ward)"
    levels = {"visit": [0, 1, 2, 3], "old": [False, True]}
    parts = [CrossProducts.of(formula, own, levels=levels) for own in sites(frame)]
    pooled = blm.LMM(formula, frame)
    assert_same_model(pooled, blm.LMM.from_products(CrossProducts.total(parts)))
    for wrong in ({"visit": [3, 2, 1, 0]}, {"visit": ["0", "1"]}, {"old": [True, False]}):
        with pytest.raises(DataError, match="levels= of"):
            CrossProducts.of(formula, frame, levels={**levels, **wrong})


def test_levels_in_common_are_one_level():
    frame = blm.load_dataset("Dyestuff")
    parts = [CrossProducts.of("Yield ~ 1 + (1 | Batch)", own) for own in cut(frame, 2, 1)]
    assert len(parts[0].table()) + len(parts[1].table()) > len(sum(parts).table()) == 6


# --- what a site may be ----------------------------------------------------------------


def test_a_site_may_be_too_little_for_a_model():
    frame = trial().dropna()
    one = CrossProducts.of(TRIAL, frame.iloc[[0]], levels=LEVELS)
    assert (one.n, one.smallest_cell) == (1, 1)
    with pytest.raises(DataError):
        blm.LMM.from_products(one)
    rest = CrossProducts.of(TRIAL, frame.iloc[1:], like=one)
    assert_same_model(blm.LMM(TRIAL, frame), blm.LMM.from_products(rest + one))


def test_a_site_without_complete_rows_has_nothing_to_add():
    frame = trial().iloc[:9].assign(x=np.nan)
    for options in ({"levels": LEVELS}, {"like": trial_parts()[0]}):
        with pytest.raises(DataError, match=r"values of `x` are missing"):
            CrossProducts.of(TRIAL, frame, **options)


def test_sites_that_are_far_from_each_other(tmp_path):
    frame = trial().dropna()
    frame["x"] += 1e7 * frame["site"]
    frame["y"] += 1e6
    found = CrossProducts.total(sent(part, tmp_path) for part in trial_parts(frame))
    expected = blm.LMM(TRIAL, frame).reml().criterion
    # y has lost six digits before it is read, and x seven
    assert blm.LMM.from_products(found).reml().criterion == pytest.approx(expected, abs=1e-6)


# --- what does not add up --------------------------------------------------------------


def test_other_models_are_refused():
    frame = trial()
    first = CrossProducts.of(TRIAL, frame, levels=LEVELS, name="north")
    plain = "y ~ x + (1 | ward)"
    cases = [
        (first, CrossProducts.of(plain, frame), r"north is of `y ~ x \* arm.*with one formula"),
        (
            CrossProducts.of(plain, frame),
            CrossProducts.of(plain, frame.assign(w=1.0), weights="w"),
            r"has no weights, and .* the weights `w`.*same weights=",
        ),
        (
            first,
            CrossProducts.of(TRIAL, frame, levels={**LEVELS, "sex": ["m", "f"]}),
            r"has the levels `f`, `m` of `sex`, and .*`m`, `f`.*like= one of them",
        ),
    ]
    for one, two, words in cases:
        with pytest.raises(DataError, match=words):
            one + two


def test_other_memories_are_refused_also_where_rows_agree():
    """Both sites have mean 0, at which rows that are made up tell nothing of the scale."""
    frame = trial().dropna().assign(z=lambda f: f["x"] - f["x"].mean())
    formula = "y ~ scale(z) + (1 | ward)"
    one = CrossProducts.of(formula, frame)
    two = CrossProducts.of(formula, frame.assign(z=2 * frame["z"]))
    with pytest.raises(DataError, match=r"`scale\(z\)` remembers other values.*like="):
        one + two


@pytest.mark.parametrize("released", [False, True])
def test_rows_count_once(released, tmp_path):
    frame = trial()
    part = CrossProducts.of(TRIAL, frame, levels=LEVELS, name="north")
    shuffled = [own for own in np.array_split(np.random.default_rng(3).permutation(len(frame)), 7)]
    again = CrossProducts.of(
        TRIAL, [frame.iloc[rows] for rows in shuffled], levels=LEVELS, name="south"
    )
    if released:
        again = sent(again, tmp_path, smallest_cell=2)
    with pytest.raises(DataError, match=r"north and south have the same sums over"):
        part + again
    other = CrossProducts.of(TRIAL, frame.iloc[1:], levels=LEVELS, name="north")
    with pytest.raises(DataError, match=r"Two parts are called north"):
        part + other
    third = CrossProducts.of(TRIAL, frame.iloc[:200], levels=LEVELS, name="west")
    with pytest.raises(DataError, match=r"would count twice"):
        (third + part) + again
    assert CrossProducts.total([part, again], allow_equal=True).n == 2 * part.n


def test_what_is_no_sum():
    part = trial_parts()[0]
    with pytest.raises(TypeError):
        part + 1
    with pytest.raises(TypeError, match="total"):
        blm.LMM.from_products([part])
    with pytest.raises(TypeError):
        CrossProducts.total([part, 3])
    with pytest.raises(DataError, match="no cross-products"):
        CrossProducts.total([])
    assert (0 + part) is part


def test_arguments_are_checked():
    frame = trial()
    part = trial_parts()[0]
    of = CrossProducts.of
    with pytest.raises(DataError, match="give one of them"):
        of(TRIAL, frame, like=part, levels=LEVELS)
    with pytest.raises(DataError, match="lacks `sex`"):
        of(TRIAL, frame, levels={"arm": LEVELS["arm"]})
    with pytest.raises(DataError, match="no factor among the covariates"):
        of(TRIAL, frame, levels={**LEVELS, "ward": ["a", "b"]})
    with pytest.raises(DataError, match="not in"):
        of(TRIAL, frame, levels={**LEVELS, "arms": ["a", "b"]})
    with pytest.raises(DataError, match="at least two values"):
        of(TRIAL, frame, levels={**LEVELS, "sex": "m"})
    with pytest.raises(DataError, match=r"`m`.*levels=.*every level"):
        of(TRIAL, frame, levels={**LEVELS, "sex": ["f", "x"]})
    with pytest.raises(DataError, match=r"like= is of the formula"):
        of("y ~ x + (1 | ward)", frame, like=part)
    with pytest.raises(DataError, match=r"name of a column"):
        of("y ~ x + (1 | ward)", frame, weights=np.ones(len(frame)))
    with pytest.raises(TypeError, match="name must be text"):
        of(TRIAL, frame, name=3)
    with pytest.raises(FormulaError):
        of("y ~ z + (1 | ward)", frame)


# --- inspection ------------------------------------------------------------------------


def test_what_is_in_them_is_shown():
    frame = trial().dropna()
    parts = [
        CrossProducts.of(TRIAL, own, levels=LEVELS, name=f"s{i}")
        for i, own in frame.groupby("site")
    ]
    found = CrossProducts.total(parts)
    table = found.table()["rows"]
    for name in ("ward", "arm", "sex"):
        expected = frame[name].value_counts().sort_index()
        assert table.loc[name].to_dict() == expected.to_dict()
    pairs = [frame.groupby(["ward", name]).size().min() for name in LEVELS]
    assert found.smallest_cell == min(pairs)
    text = repr(found)
    for words in (TRIAL, f"Rows: {len(frame)}", "Parts: 5 (s0, s1", "arm: 2 levels of", " kB"):
        assert words in text
    assert "1 without rows" in repr(parts[2])
    assert found.parts["rows"].tolist() == [part.n for part in parts]
    assert pickle.loads(pickle.dumps(found)).parts.equals(found.parts)


def test_cells_are_all_that_sums_tell():
    cake, oats = blm.load_dataset("cake"), blm.load_dataset("Oats")
    cases = [
        (cake, "angle ~ recipe * temperature + (1 | replicate)", ["recipe", "temperature"]),
        (
            cake,
            "angle ~ C(recipe, Sum) + recipe:temperature + (1 | replicate)",
            ["recipe", "temperature"],
        ),
        (oats, "yield ~ Variety + (1 | Block)", ["Block", "Variety"]),
        (oats, "yield ~ 1 + (1 | Block) + (1 | Variety)", ["Block", "Variety"]),
    ]
    rng = np.random.default_rng(1)
    for frame, formula, names in cases:
        some = frame[rng.random(len(frame)) < 0.6]
        found = CrossProducts.of(formula, some)
        counts = {own.name: own for own in found.cells}[":".join(names)].counts
        expected = some.groupby(names, observed=True).size()
        assert sorted(counts[counts > 0]) == sorted(expected)


# --- files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "site.products"
    trial_parts()[0].save(path)
    return path


def test_files_are_what_was_saved(saved, tmp_path):
    part, found = trial_parts()[0], CrossProducts.load(saved)
    assert found.parts.equals(part.parts)
    again = tmp_path / "again.products"
    found.save(again)
    assert again.read_bytes() == saved.read_bytes()
    with pytest.raises(FileExistsError):
        found.save(again)
    with pytest.raises(ValueError, match=r"end in .products"):
        found.save(tmp_path / "site.nc")
    with pytest.raises(ValueError, match=r"end in .products"):
        CrossProducts.load(tmp_path / "site.nc")
    with pytest.raises(FileNotFoundError):
        CrossProducts.load(tmp_path / "other.products")
    with pytest.raises(FileNotFoundError):
        found.save(tmp_path / "no" / "site.products")
    with pytest.raises(ValueError, match="whole number from 2"):
        found.save(tmp_path / "site.products", smallest_cell=1)


@pytest.mark.parametrize("residual", ["ar1(age | Subject)", "strata(Sex)", "se(se)"])
def test_parts_with_a_structure_are_stored(residual):
    frame = blm.load_dataset("Orthodont").assign(se=np.linspace(1.0, 2.0, 108))
    formula = parse("distance ~ age + (1 | Subject)", {})
    source = frames_source("The data frame", [frame])
    part = read_part(formula, source, None, {}, residual=parse_residual(residual))
    description, arrays = pack_part(part)
    found = unpack_part(json.loads(json.dumps(description)), arrays)
    one, two = (fit_likelihood(marginal_system(p.design({})), "REML") for p in (part, found))
    assert one.criterion == two.criterion


def test_damaged_files_are_refused(saved, tmp_path):
    content, path = saved.read_bytes(), tmp_path / "damaged.products"
    rng = np.random.default_rng(7)
    changed = [content[:size] for size in rng.integers(0, len(content), 20)] + [content + b"\0"]
    for place in rng.integers(0, len(content), 60):
        bytes_ = bytearray(content)
        bytes_[place] ^= int(rng.integers(1, 256))
        changed.append(bytes(bytes_))
    for own in changed:
        path.write_bytes(own)
        with pytest.raises(StorageError):
            CrossProducts.load(path)


def document_of(content):
    """What describes a file, and where it begins and ends."""
    start = len(MAGIC) + 8
    end = start + int.from_bytes(content[len(MAGIC) : start], "little")
    return json.loads(content[start:end]), start, end


def arrays_of(content):
    """Name, place and values of each array."""
    document, _, place = document_of(content)
    for name, item in document["arrays"].items():
        count, dtype = int(np.prod(item["shape"])), np.dtype(item["dtype"])
        yield name, place, np.frombuffer(content, dtype, count, place)
        place += count * dtype.itemsize


def signed(content):
    return content + hashlib.sha256(content).digest()


def edited(content, change):
    """A file whose document was changed, with a SHA-256 that is right again."""
    document, _, end = document_of(content)
    change(document)
    text = json.dumps(document).encode()
    return signed(MAGIC + len(text).to_bytes(8, "little") + text + content[end:-32])


def _rename(document):
    document["part"]["columns"][0][1] = "z"


def _claim_rows(document):
    document["part"]["sums"]["n"] += 1


def _claim_parts(document):
    document["facts"]["origins"][0]["digest"] = "0" * 64


def _other_formula(document):
    document["part"]["formula"] = "y ~ x + arm + sex + (x | ward)"


def _long_array(document):
    document["arrays"]["products"]["shape"] = [10**9, 10**9]


def _objects(document):
    document["arrays"]["products"]["dtype"] = "object"


def _later(document):
    document["schema"] = 99


@pytest.mark.parametrize(
    "change",
    [_rename, _claim_rows, _claim_parts, _other_formula, _long_array, _objects, _later],
)
def test_files_that_were_edited_are_refused(saved, tmp_path, change):
    path = tmp_path / "edited.products"
    path.write_bytes(edited(saved.read_bytes(), lambda document: None))
    assert CrossProducts.load(path).n == CrossProducts.load(saved).n
    path.write_bytes(edited(saved.read_bytes(), change))
    with pytest.raises(StorageError):
        CrossProducts.load(path)


def test_numbers_that_do_not_fit_are_refused(saved, tmp_path):
    """Sums can be had in two ways; what is changed in one, and signed, is seen by the other."""
    content, path = saved.read_bytes(), tmp_path / "edited.products"
    for name, place, _ in arrays_of(content):
        if name in ("products", "random 0", "side 0 triangle", "counts 0", "basis"):
            for number in (0.5, np.nan):
                own = bytearray(content[:-32])
                own[place : place + 8] = np.array([number]).tobytes()
                path.write_bytes(signed(bytes(own)))
                with pytest.raises(StorageError):
                    CrossProducts.load(path)


def test_any_signed_bytes_give_sums_or_an_error(saved, tmp_path):
    content, path = saved.read_bytes()[:-32], tmp_path / "hostile.products"
    rng = np.random.default_rng(11)
    refused = 0
    for place in rng.integers(0, len(content), 60):
        own = bytearray(content)
        own[place] ^= int(rng.integers(1, 256))
        path.write_bytes(signed(bytes(own)))
        try:
            CrossProducts.load(path)
        except BayesLMMError:
            refused += 1
    assert refused > 20


# --- disclosure ------------------------------------------------------------------------


def test_small_cells_are_refused(tmp_path):
    frame = trial().dropna()
    path = tmp_path / "site.products"
    part = CrossProducts.of(TRIAL, frame, levels=LEVELS)
    m = part.smallest_cell
    part.save(path, smallest_cell=m)
    with pytest.raises(
        DataError, match=rf"fewer than {m + 1} rows.*combinations of levels of `ward`"
    ):
        part.save(path, smallest_cell=m + 1, overwrite=True)
    few = CrossProducts.of(
        TRIAL, frame.drop(frame[frame["ward"] == "0-1"].index[2:]), levels=LEVELS
    )
    with pytest.raises(DataError, match=r"levels of `ward`: 1;"):
        few.save(path, smallest_cell=3, overwrite=True)
    rare = frame.assign(arm=np.where(np.arange(len(frame)) < 2, "treated", "control"))
    with pytest.raises(DataError, match=r"levels of `arm`: 1"):
        CrossProducts.of(TRIAL, rare, levels=LEVELS).save(path, smallest_cell=3, overwrite=True)
    zeros = frame.assign(x=np.where(np.arange(len(frame)) < 2, 5.0, 0.0))
    with pytest.raises(DataError, match=r"values of `x` other than zero: 2 rows"):
        CrossProducts.of(TRIAL, zeros, levels=LEVELS).save(path, smallest_cell=3, overwrite=True)


def test_values_of_rows_are_withheld(tmp_path, caplog):
    frame = trial().dropna()
    frame["w"] = np.random.default_rng(2).uniform(1.3, 77.7, len(frame))
    formula = "y ~ x + arm + offset(x / 7) + (0 + x | ward)"
    batches = [frame.iloc[[0]], frame.iloc[1:]]
    part = CrossProducts.of(formula, batches, levels={"arm": LEVELS["arm"]}, weights="w")
    with caplog.at_level(logging.INFO):
        found = sent(part, tmp_path, smallest_cell=3)
    assert "withheld are the values" in caplog.text
    content = (tmp_path / "site.products").read_bytes()
    numbers = {value for _, _, own in arrays_of(content) for value in own.tolist()}
    values = frame[["y", "x", "w"]].to_numpy().ravel().tolist()
    offsets = (frame["x"] / 7).tolist() + (frame["y"] - frame["x"] / 7).tolist()
    assert numbers.isdisjoint(values + offsets)
    text = json.dumps(document_of(content)[0])
    assert not [value for value in values + offsets if repr(value) in text]
    plain = sent(part, tmp_path)
    assert not set(plain.part.summary.sample["x"]).isdisjoint(frame["x"])
    pooled = blm.LMM(formula, frame, weights="w")
    assert_same_model(pooled, blm.LMM.from_products(found))
    both = CrossProducts.total([found, plain], allow_equal=True)
    assert both.part.summary.ranges == {}
    design = blm.LMM.from_products(both).design
    with pytest.raises(DataError, match=r"`x` are withheld"):
        design.range_of("x")


def test_bounds_hold():
    rng = np.random.default_rng(1)
    columns = rng.standard_t(2, (50, 4)) * [1.0, 1e6, 1e-6, 1.0] + [0.0, 1e9, 0.0, 0.0]
    columns[:, 3] = np.eye(50)[:, 0]  # as far from its mean as can be
    columns = np.column_stack([columns, np.full(50, 3.7)])
    own = Moments.of(columns)
    found = bounded(own)
    assert np.all(found.low <= own.low) and np.all(found.high >= own.high)
    assert np.all(found.low[:4] < own.low[:4])
    assert found.high[3] == pytest.approx(1.0)  # the bound is sharp
    assert found.low[4] == found.high[4] == 3.7


def test_columns_that_need_values_of_rows_are_not_let_out(tmp_path):
    frame = trial().dropna()
    path = tmp_path / "site.products"
    cases = [
        ("y ~ I(x > 60) + (1 | ward)", r"depend on values of single rows"),
        ("y ~ bs(x, knots=[50]) + (1 | ward)", r"boundary at the smallest"),
        ("y ~ ns(x, knots=[50]) + (1 | ward)", r"boundary at the smallest"),
    ]
    for formula, words in cases:
        part = CrossProducts.of(formula, frame)
        with pytest.raises(DataError, match=words):
            part.save(path, smallest_cell=2)
    formula = "y ~ bs(x, knots=[50], lower_bound=0, upper_bound=100) + scale(x) + (1 | ward)"
    part = CrossProducts.of(formula, frame)
    found = sent(part, tmp_path, smallest_cell=2)
    assert_same_model(blm.LMM(formula, frame), blm.LMM.from_products(found), tolerance=1e-8)
    first = CrossProducts.of("y ~ bs(x, knots=[50]) + (1 | ward)", frame)
    like = CrossProducts.of("y ~ bs(x, knots=[50]) + (1 | ward)", frame.iloc[50:], like=first)
    assert sent(like, tmp_path, smallest_cell=2).n == len(frame) - 50


# --- command line ----------------------------------------------------------------------


def test_the_command_line_makes_and_adds_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    formula = "y ~ x + C(visit) + arm + (1 | ward)"
    frame = trial().query("site < 3").assign(visit=lambda rows: np.arange(len(rows)) % 3)
    for i, own in enumerate(sites(frame)):
        own.to_csv(f"{i}.csv", index=False)
        levels = ["--levels", "arm=control,treated", "--levels", "visit=0,1,2"]
        columns = levels if i == 0 else ["--like", "0.products"]
        arguments = [formula, f"{i}.csv", "--out", f"{i}.products", "--name", f"s{i}", *columns]
        assert main(["products", *arguments, "--smallest-cell", "2"]) == 0
    printed = capsys.readouterr()
    assert "Parts: 1 (s2)" in printed.out
    assert "withheld" in printed.err
    model = blm.LMM.from_products(sum(CrossProducts.load(f"{i}.products") for i in range(3)))
    assert_same_model(blm.LMM(formula, frame), model)
    options = ["--method", "laplace", "--draws", "50", "--quiet"]
    assert main([formula, "*.products", *options]) == 0
    assert "Number of obs: 240" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["products", "y ~ x + (1 | ward)", "0.csv", "--out", "0.products"], "--force"),
        (["products", "y ~ x + (1 | ward)", "0.csv", "--out", "0.nc"], "end in .products"),
        (
            ["products", "y ~ x + (1 | ward)", "0.csv", "--out", "1.products", "--levels", "x"],
            "=",
        ),
        (["y ~ x + (1 | ward)", "[5-9].products"], "no file"),
        (["y ~ x + (1 | ward)", "0.products", "--weights", "w"], "--weights"),
        (["y ~ 1 + (1 | ward)", "0.products"], "are of the formula"),
        (["y ~ x + (1 | ward)", "bad.products"], "no cross-products"),
    ],
)
def test_what_the_command_line_refuses(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    frame = trial()
    frame.to_csv("0.csv", index=False)
    CrossProducts.of("y ~ x + (1 | ward)", frame).save("0.products")
    (tmp_path / "bad.products").write_text("no file of ours")
    assert main(arguments) == (1 if "bad.products" in arguments else 2)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "1.products").exists()
