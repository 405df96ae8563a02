import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data_pipeline import simulate
from data_pipeline.schema import from_json, to_json
from data_pipeline.simulate import PROFILES, WORLDS, Profile, SimulatedLog
from hm3_tf.errors import ConfigError

ROWS = 1_000_000
MICRO = ("picture", "qa", "chat", "comments", "cart_button")
MACRO = ("cart", "wish")


def _columns(log):
    """All columns of one value a row, end to end."""
    batches = list(log.batches())
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0] if name != "history"}


@pytest.fixture(scope="module")
def logs():
    return {profile: _columns(SimulatedLog(profile=profile, rows=ROWS)) for profile in PROFILES}


@pytest.fixture(params=sorted(PROFILES))
def profiled(request, logs):
    return PROFILES[request.param], logs[request.param]


@pytest.fixture
def dense(logs):
    return logs["dense"]


@pytest.fixture(scope="module")
def chunk():
    return next(SimulatedLog(rows=simulate.CHUNK_ROWS, seed=2).batches())


def _reach(c):
    """Rows that arrive at each edge, P(arriving) and P(passing): {field of Profile: (bool, float, float)} [rows]."""
    y1, y2, y3, y4, y5, y6 = (np.float64(c[name]) for name in ("truth_pctr", *(f"truth_y{i}" for i in range(2, 7))))
    d_ma = y2 * y3 + (1 - y2) * y5
    click, did_mi, did_ma = (c[name] == 1 for name in ("click", "truth_do_d_mi", "truth_do_d_ma"))
    return {
        "click": (np.full(len(y1), True), np.ones_like(y1), y1),
        "d_mi": (click, y1, y2),
        "d_ma_given_d_mi": (click & did_mi, y1 * y2, y3),
        "d_ma_given_no_d_mi": (click & ~did_mi, y1 * (1 - y2), y5),
        "purchase_given_d_ma": (click & did_ma, y1 * d_ma, y4),
        "purchase_given_no_d_ma": (click & ~did_ma, y1 * (1 - d_ma), y6),
    }


def _outcome(c, rate):
    name = rate.split("_given")[0]
    return c["click"] if name == "click" else c[f"truth_do_{name}"]


def _assert_calibrated(labels, truth):
    """The labels' mean is within four standard errors of the truth's, which is the exact mean of their Bernoullis."""
    truth = np.float64(truth)
    error = np.sqrt((truth * (1 - truth)).sum())
    assert abs(labels.sum() - truth.sum()) < 4 * error + 1e-3


@pytest.mark.parametrize("rate", [field.name for field in dataclasses.fields(Profile)])
def test_true_rates_are_within_two_percent_of_the_profile(profiled, rate):
    profile, columns = profiled
    _, weights, truth = _reach(columns)[rate]
    assert np.average(truth, weights=weights) == pytest.approx(getattr(profile, rate), rel=0.02)


@pytest.mark.parametrize("rate", [field.name for field in dataclasses.fields(Profile)])
def test_observed_rates_are_those_of_the_profile_within_sampling_error(profiled, rate):
    profile, columns = profiled
    target, (rows, _, _) = getattr(profile, rate), _reach(columns)[rate]
    error = np.sqrt(target * (1 - target) / rows.sum())
    assert abs(_outcome(columns, rate)[rows].mean() - target) < 0.02 * target + 4 * error


def test_rates_of_table_2_follow_from_the_split_ones(profiled):
    _, columns = profiled
    clicked = columns["click"] == 1
    any_macro = (columns["cart"] | columns["wish"])[clicked]
    assert any_macro.mean() == pytest.approx(0.130, rel=0.05)  # .247 x .197 + .753 x .108
    assert columns["purchase"][clicked].mean() == pytest.approx(0.0342, rel=0.1)  # .130 x .236 + .870 x .004


def test_a_profile_of_ones_own_is_hit():
    log = SimulatedLog(profile=dataclasses.replace(PROFILES["dense"], click=0.4), rows=100_000)
    assert _columns(log)["truth_pctr"].mean() == pytest.approx(0.4, rel=0.02)


def test_labels_nest_under_the_click(dense):
    unclicked = dense["click"] == 0
    for name in (*MICRO, *MACRO, "purchase", "gmv"):
        assert not dense[name][unclicked].any(), name


def test_observed_levels_are_the_counterfactual_ones_times_the_click(dense):
    click = dense["click"]
    np.testing.assert_array_equal(np.any([dense[name] for name in MICRO], axis=0), dense["truth_do_d_mi"] * click == 1)
    np.testing.assert_array_equal(np.any([dense[name] for name in MACRO], axis=0), dense["truth_do_d_ma"] * click == 1)
    np.testing.assert_array_equal(dense["purchase"], dense["truth_do_purchase"] * click)


def test_gmv_is_the_price_of_what_was_bought(dense):
    np.testing.assert_array_equal(dense["gmv"], dense["purchase"] * dense["price"])


@pytest.mark.parametrize("mix", [simulate.MICRO_MIX, simulate.MACRO_MIX])
def test_behaviors_have_their_shares_where_their_level_happened(dense, mix):
    happened = np.any([dense[name] for name in mix], axis=0)
    for name, share in mix.items():
        error = np.sqrt(share * (1 - share) / happened.sum())
        assert abs(dense[name][happened].mean() - share) < 4 * error, name


def test_carts_are_to_wishes_as_ten_to_three_and_a_half(dense):
    assert dense["cart"].sum() / dense["wish"].sum() == pytest.approx(10 / 3.5, rel=0.05)


@pytest.mark.parametrize(
    "mix, any_of", [(simulate.MICRO_MIX, simulate.MICRO_ANY), (simulate.MACRO_MIX, simulate.MACRO_ANY)]
)
def test_the_chance_of_any_behavior_is_a_fixed_point(mix, any_of):
    assert 1 - np.prod([1 - any_of * share for share in mix.values()]) == pytest.approx(any_of, abs=1e-9)


def test_truth_is_the_closed_form_of_the_paper(dense):
    y1, y2, y3, y4, y5, y6 = (np.float64(dense[name]) for name in ("truth_pctr", *(f"truth_y{i}" for i in range(2, 7))))
    pctcvr = y1 * y4 * (y2 * y3 + (1 - y2) * y5) + y1 * y6 * (y2 * (1 - y3) + (1 - y2) * (1 - y5))
    np.testing.assert_allclose(dense["truth_d_mi"], y1 * y2, rtol=1e-6)
    np.testing.assert_allclose(dense["truth_d_ma"], y1 * (y2 * y3 + (1 - y2) * y5), rtol=1e-6)
    np.testing.assert_allclose(dense["truth_pctcvr"], pctcvr, rtol=1e-6)
    np.testing.assert_allclose(dense["truth_pcvr"], pctcvr / y1, rtol=1e-6)


TRUTH_OF = (
    ("click", "truth_pctr"),
    ("purchase", "truth_pctcvr"),
    ("truth_do_purchase", "truth_pcvr"),
    ("truth_do_d_mi", "truth_y2"),
)


@pytest.mark.parametrize("label, truth", TRUTH_OF)
def test_truth_is_calibrated_as_a_whole_and_in_each_decile(dense, label, truth):
    _assert_calibrated(dense[label], dense[truth])
    for rows in np.array_split(np.argsort(dense[truth]), 10):
        _assert_calibrated(dense[label][rows], dense[truth][rows])


@pytest.mark.parametrize("rate", [field.name for field in dataclasses.fields(Profile)])
def test_each_edge_is_calibrated_on_the_rows_that_reach_it(dense, rate):
    rows, _, truth = _reach(dense)[rate]
    _assert_calibrated(_outcome(dense, rate)[rows], truth[rows])


@pytest.mark.parametrize("did_ma, truth", [(1, "truth_y4"), (0, "truth_y6")])
@pytest.mark.parametrize("did_mi", [0, 1])
@pytest.mark.parametrize("click", [0, 1])
def test_given_the_macro_level_purchase_ignores_micro_and_click(dense, did_ma, truth, did_mi, click):
    rows = (dense["truth_do_d_ma"] == did_ma) & (dense["truth_do_d_mi"] == did_mi) & (dense["click"] == click)
    _assert_calibrated(dense["truth_do_purchase"][rows], dense[truth][rows])


@pytest.mark.parametrize("given, otherwise", [("truth_y3", "truth_y5"), ("truth_y4", "truth_y6")])
def test_the_level_before_shifts_a_logit_by_one_constant(dense, given, otherwise):
    y, z = np.float64(dense[given]), np.float64(dense[otherwise])
    rows = (y > 1e-3) & (y < 0.9)  # float32 truths hold no more of the logit near 0 and 1
    shift = np.log(y / (1 - y))[rows] - np.log(z / (1 - z))[rows]
    assert np.ptp(shift) < 1e-4
    assert shift.mean() > 0


def test_the_truth_ranks_about_as_in_the_paper(profiled):
    _, columns = profiled
    clicked = columns["click"] == 1
    aucs = {
        "pctr": roc_auc_score(columns["click"], columns["truth_pctr"]),
        "pcvr": roc_auc_score(columns["purchase"][clicked], columns["truth_pcvr"][clicked]),
        "pctcvr": roc_auc_score(columns["purchase"], columns["truth_pctcvr"]),
    }
    assert 0.70 < aucs["pctr"] < 0.76
    assert 0.87 < aucs["pcvr"] < 0.93
    assert aucs["pcvr"] < aucs["pctcvr"] < 0.96


def test_utilities_correlate_as_the_world_says(dense):
    logits = {name: np.log(dense[name] / (1 - dense[name])) for name in ("truth_y2", "truth_y5", "truth_y4")}
    micro_macro, macro_purchase = ("truth_y2", "truth_y5"), ("truth_y5", "truth_y4")
    for (one, other), expected in ((micro_macro, 0.7), (macro_purchase, 0.8)):
        found = np.corrcoef(logits[one], logits[other])[0, 1]
        # The noise of a row, a tenth of each variance, is not shared; the users' Zipf tail makes it a rough check.
        assert found == pytest.approx(0.9 * expected, abs=0.08)


def test_without_row_noise_the_truth_is_a_function_of_the_features():
    world = dataclasses.replace(WORLDS["graph_true"], observed_r2=1.0)
    columns = _columns(SimulatedLog(world=world, rows=50_000, users=100, items=100))
    keys = np.stack([columns[name] for name in ("user_id", "item_id", "position")])
    _, group = np.unique(keys, axis=1, return_inverse=True)
    order = np.argsort(group, kind="stable")
    again = np.diff(group[order]) == 0
    assert again.sum() > 1_000
    for name in ("truth_pctr", "truth_y2", "truth_y3", "truth_y4"):
        assert np.abs(np.diff(columns[name][order])[again]).max() < 1e-6, name


def test_one_seed_gives_one_log():
    for one, other in zip(SimulatedLog(rows=70_000, seed=7).batches(), SimulatedLog(rows=70_000, seed=7).batches()):
        np.testing.assert_equal(one, other)


def test_chunks_do_not_depend_on_what_was_drawn_before():
    log = SimulatedLog(rows=70_000, seed=7)
    both, again = list(log.batches()), list(log.batches())
    assert [len(batch["click"]) for batch in both] == [65_536, 4_464]
    assert both[1]["history"][0].size == both[1]["history"][1].sum()
    np.testing.assert_equal(both[1], again[1])


def test_another_seed_gives_other_rows_and_other_tastes(chunk):
    other = next(SimulatedLog(rows=simulate.CHUNK_ROWS, seed=3).batches())
    assert (chunk["click"] != other["click"]).mean() > 0.1
    means = [
        [batch["truth_y2"][batch["category"] == f"category_{code}".encode()].mean() for code in range(24)]
        for batch in (chunk, other)
    ]
    assert abs(np.corrcoef(means)[0, 1]) < 0.7


def test_a_shorter_log_is_the_start_of_a_longer_one_but_for_the_day():
    short, long = (next(SimulatedLog(rows=rows).batches()) for rows in (1_003, 2_000))
    lengths = short["history"][1]
    np.testing.assert_array_equal(lengths, long["history"][1][:1_003])
    np.testing.assert_array_equal(short["history"][0], long["history"][0][: lengths.sum()])
    for name in set(short) - {"history", "day"}:
        np.testing.assert_array_equal(short[name], long[name][:1_003])


def test_days_are_spread_evenly_in_row_order(dense):
    assert (np.diff(dense["day"]) >= 0).all()
    counts = np.bincount(dense["day"])
    assert len(counts) == 7 and counts.max() - counts.min() <= 1


def test_a_slate_is_one_user_and_eight_positions(dense):
    slates = dense["slate"].reshape(-1, 8)
    np.testing.assert_array_equal(slates, np.repeat(np.arange(ROWS // 8)[:, None], 8, axis=1))
    assert (dense["user_id"].reshape(-1, 8) == dense["user_id"].reshape(-1, 8)[:, :1]).all()
    np.testing.assert_array_equal(dense["position"].reshape(-1, 8), np.tile(np.arange(8), (ROWS // 8, 1)))


def test_a_slate_does_not_repeat_an_item(dense):
    items = np.sort(dense["item_id"].reshape(-1, 8), axis=1)
    assert (np.diff(items, axis=1) > 0).all()


def test_lower_positions_are_clicked_less(dense):
    rates = [dense["truth_pctr"][dense["position"] == position].mean() for position in range(8)]
    assert (np.diff(rates) < 0).all()


def test_popularity_has_a_shifted_zipf_head(dense):
    counts = np.sort(np.unique(dense["user_id"], return_counts=True)[1])[::-1] / ROWS
    ranks = np.arange(2_000) + 21.0
    expected = ranks**-1.05 / (ranks**-1.05).sum()
    assert len(counts) == 2_000
    np.testing.assert_allclose(counts[:50].sum(), expected[:50].sum(), rtol=0.05)


def test_ids_exceed_what_floats_hold_and_are_distinct(dense):
    for name in ("user_id", "item_id"):
        ids = np.unique(dense[name])
        assert ids.dtype == np.int64 and ids.min() > 2**53
        assert 1_900 < len(ids) <= 2_000
        assert len(np.unique(ids.astype(np.float64))) < len(ids) / 4
    assert not set(dense["user_id"]) & set(dense["item_id"])


def test_two_percent_of_the_brands_are_missing_and_no_other_text_is(dense):
    assert abs((dense["brand"] == b"").mean() - 0.02) < 4 * np.sqrt(0.02 * 0.98 / ROWS)
    for name in ("city", "age", "gender", "power", "category", "shop"):
        assert not (dense[name] == b"").any(), name


def _rows_of_history(batch):
    ids, lengths = batch["history"]
    return ids, np.repeat(np.arange(len(lengths)), lengths)


def test_history_holds_up_to_ten_items_and_is_alike_in_a_slate(chunk):
    ids, lengths = chunk["history"]
    assert ids.dtype == lengths.dtype == np.int64
    assert set(lengths) == set(range(11)) and ids.size == lengths.sum()
    _, rows = _rows_of_history(chunk)
    slates = [ids[rows == row] for row in range(80)]
    for row in range(80):
        np.testing.assert_array_equal(slates[row], slates[row - row % 8])


def test_history_holds_items_of_the_log(chunk):
    assert np.isin(chunk["history"][0], chunk["item_id"]).mean() > 0.95


def test_history_tells_what_a_user_likes(chunk):
    ids, rows = _rows_of_history(chunk)
    liked = np.zeros(len(chunk["click"]), bool)
    liked[rows[ids == chunk["item_id"][rows]]] = True
    for name in ("truth_y2", "truth_pcvr"):
        assert chunk[name][liked].mean() > 1.3 * chunk[name][~liked].mean(), name


def test_history_does_not_tell_the_outcome(chunk):
    truth = np.float64(chunk["truth_pctr"])
    surprise = (chunk["click"] - truth) / np.sqrt(truth * (1 - truth))
    ids, rows = _rows_of_history(chunk)
    liked = np.isin(np.arange(len(truth)), rows[ids == chunk["item_id"][rows]])
    assert abs(surprise[liked].mean()) < 4 / np.sqrt(liked.sum())
    assert abs(np.corrcoef(surprise, chunk["history"][1])[0, 1]) < 4 / np.sqrt(len(truth))


def test_batches_hold_the_columns_of_the_schema_in_its_dtypes(chunk):
    schema = SimulatedLog().schema
    assert list(chunk) == [column.name for column in schema.columns]
    kinds = {"int64": np.int64, "float": np.float32}
    for column in schema.columns:
        values = chunk[column.name][0] if column.shape else chunk[column.name]
        assert values.dtype.kind == "S" if column.dtype == "string" else values.dtype == kinds[column.dtype], column
        assert column.dtype != "float" or np.isfinite(values).all()


def test_the_schema_survives_json():
    schema = SimulatedLog().schema
    assert from_json(to_json(schema)) == schema


def test_the_schema_says_which_inputs_are_of_the_user():
    of_user = [column.name for column in SimulatedLog().schema.inputs if column.entity == "user"]
    assert of_user == ["user_id", "city", "age", "gender", "power", "history"]


def test_the_schema_declares_hm3s_levels():
    levels = SimulatedLog().schema.levels
    assert [(level.name, level.any_of) for level in levels] == [
        ("click", ("click",)),
        ("d_mi", MICRO),
        ("d_ma", MACRO),
        ("purchase", ("purchase",)),
    ]
    assert [level.gate for level in levels] == [True, False, False, False]


def test_neither_truth_nor_labels_can_be_inputs():
    schema = SimulatedLog().schema
    inputs = {column.name for column in schema.inputs}
    assert inputs == {
        "position",
        "user_id",
        "item_id",
        "price",
        "history",
        *simulate.USER_ATTRIBUTES,
        *simulate.ITEM_ATTRIBUTES,
    }
    assert all((column.role == "truth") == column.name.startswith("truth_") for column in schema.columns)


def test_history_shares_the_table_of_the_items():
    schema = SimulatedLog(items=500).schema
    assert schema.column("history").hashing == schema.column("item_id").hashing
    assert schema.column("history").hashing.table == "item_id"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"world": "graph_tru"}, r"expected a known world, got 'graph_tru'; did you mean 'graph_true'\?"),
        ({"world": "x"}, "expected a known world, got 'x'; known: graph_true"),
        ({"profile": "dens"}, r"expected a known profile, got 'dens'; did you mean 'dense'\?"),
        ({"rows": 0}, "expected rows of at least 1, got 0"),
        ({"seed": -1}, "expected seed of at least 0, got -1"),
        ({"users": 99}, "expected users of at least 100, got 99"),
        ({"items": 99}, "expected items of at least 100, got 99"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SimulatedLog(**arguments)


def test_the_simulator_does_not_load_tensorflow():
    code = "import data_pipeline.simulate, sys; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
