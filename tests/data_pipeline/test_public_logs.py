"""Public logs in small files of their official layouts: what is stored, labels counted by hand, training."""

import collections
import functools
import gzip
import json
import math
import random
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf

from data_pipeline.bad_records import BadRecords
from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.read import Reader
from data_pipeline.sources import PUBLIC_LOGS, base, event_log, kuairand, open_source
from data_pipeline.sources.public import SideTable, last_values, split_numbers, whole_numbers, windows
from data_pipeline.split_rules import ColumnRule, FractionRule
from data_pipeline.validate import validate_sample
from hm3_tf import build_model, train
from hm3_tf.cli import _status
from hm3_tf.config import Config, ModelConfig, TrainingConfig
from hm3_tf.errors import ConfigError, DataError, Hm3Error, UsageError
from hm3_tf.methods import METHODS, fitting_methods
from tests.data_pipeline.conftest import read_stored
from tests.data_pipeline.event_logs import otto, rees46, retailrocket, taobao
from tests.data_pipeline.written_logs import BIG, GONE, Written, filled, lines

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


def aliexpress():
    rng, files, rows = random.Random(0), {}, []
    texts = {f"user_{i}" for i in (*range(2, 9), 32, 33)} | {f"item_{i}" for i in (19, 34, 35, 36, 40, 41, 42)}
    for part in ("es_test", "es_train", "nl_train"):
        country, kind = part.split("_")
        pages = {}
        for i in range(2):
            pages[str(BIG + i)] = [f"{part}{i}" if f"user_{c}" in texts else i for c in range(2, 34)]
        pages[str(BIG)][1] = ""
        files[f"{country}_user_{kind}.csv"] = lines([[page, *values] for page, values in pages.items()])
        items = []
        for i in range(9):
            page = "404" if i == 4 else str(BIG + rng.randrange(2))
            values = {f"item_{c}": f"c{c}" if f"item_{c}" in texts else c + i / 4 for c in range(2, 49)}
            label = rng.randrange(3)
            items.append([page, *values.values(), label])
            if page not in pages:
                continue
            of_page = pages[page]
            rows.append(
                {
                    "search_id": f"{country}:{page}".encode(),
                    **{"country": country.encode(), "part": kind.encode()},
                    "user_3": of_page[1].encode(),
                    "user_33": of_page[31].encode(),
                    "user_9": float(of_page[7]),
                    "item_42": b"c42",
                    "item_48": 48 + i / 4,
                    "label": label,
                }
            )
        files[f"{country}_item_{kind}.csv"] = lines(items)
    levels = {"click": [row["label"] > 0 for row in rows], "purchase": [row["label"] == 2 for row in rows]}
    return Written(files, rows, levels, {f"item_{c}" for c in range(2, 49)})


def tenrec():
    rng, rows = random.Random(1), []
    header = "user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age,"
    text = header + ",".join(f"hist_{i}" for i in range(1, 11)) + "\n"
    for i in range(20):
        click, follow, like, share = (int(rng.random() < p) for p in (0.6, 0.2, 0.4, 0.2))
        history = [BIG + 5, 7, 0, BIG + 6, *[0] * 6] if i % 3 else [0] * 10
        row = [BIG + i % 2, BIG + 5 + i % 4, click, follow, like, share, i % 3, 9, r"\N" if i == 2 else 1, "", *history]
        text += lines([row])
        rows.append(
            {
                **{"user_id": BIG + i % 2, "item_id": BIG + 5 + i % 4, "gender": GONE if i == 2 else 1, "age": GONE},
                **{"video_category": i % 3, "click": click, "follow": follow, "like": like, "share": share},
                "history": filled([BIG + 5, 7, BIG + 6] if i % 3 else [], 10),
            }
        )
    levels = {level: [row[name] for row in rows] for level, name in (("click", "click"), ("d_ma", "like"))}
    levels["purchase"] = [row["follow"] or row["share"] for row in rows]
    return Written({"ctr_data_1M.csv": text}, rows, levels, {"item_id", "video_category"})


def trendyol():
    rng, raw, rows = random.Random(2), [], []
    for i in range(24):
        flags = {name: int(rng.random() < 0.5) for name in ("clicked", "ordered", "added_to_cart", "added_to_fav")}
        term = [None, "", "kırmızı elbise", "a b c d e f g h i"][i % 4]
        ids = {"user_id_hashed": None if i == 3 else f"u{BIG + i % 2}", "content_id_hashed": f"c{i}", "session_id": "s"}
        time = np.datetime64("2025-06-01T23", "ns") + np.timedelta64(i * 3, "h")
        raw.append({"ts_hour": time, "search_term_normalized": term, **flags, **ids})
        words = [word.encode() for word in (term or "").split()]
        rows.append(
            {
                "date": str(time)[:10].encode(),
                "hour": (23 + 3 * i) % 24,
                "search_term": (term or "").encode(),
                "search_words": [*words, *[b""] * 8][:8],
                "user_id": b"" if i == 3 else f"u{BIG + i % 2}".encode(),
                "content_id": f"c{i}".encode(),
                **flags,
            }
        )
    table = {name: pa.array([row[name] for row in raw]) for name in raw[0]}
    table["search_term_normalized"] = table["search_term_normalized"].cast(pa.large_string())
    levels = {"click": [row["clicked"] for row in rows]}
    levels["d_ma"] = [row["added_to_cart"] or row["added_to_fav"] for row in rows]
    levels["purchase"] = [row["ordered"] for row in rows]
    split = "date:2025-06-03,2025-06-04"
    return Written({"train_sessions.parquet": table}, rows, levels, {"content_id"}, split)


FEED_HEADER = (
    "feedid,authorid,videoplayseconds,description,ocr,asr,bgm_song_id,bgm_singer_id,manual_keyword_list,machine_keyword_list,"
    "manual_tag_list,machine_tag_list"
)


def wechat2021():
    rng, rows = random.Random(3), []
    names = ["read_comment", "comment", "like", "play", "stay", "click_avatar", "forward", "follow", "favorite"]
    actions = ",".join(["userid,feedid,date_,device", *names]) + "\n"
    feeds = {
        BIG: [2**24 + 1, 10, '"words, and more"', "", "", "5352.0", "", "7;8", "", "12;300", "12 0.9;13 0.25"],
        BIG + 1: [2**24 + 2, *[""] * 10],
    }
    for i in range(24):
        day, feed = 12 + i // 8, [BIG, BIG + 1, 404][i % 3]
        flags = {name: int(rng.random() < 0.3) for name in names} | {"play": rng.choice([0, 0, 3500]), "stay": 1}
        actions += lines([[BIG + 7 + i % 2, feed, day, 2, *flags.values()]])
        known = feed == BIG
        rows.append(
            {
                **{"userid": BIG + 7 + i % 2, "feedid": feed, "device": 2, "date": 20210100 + day},
                **{name: flag for name, flag in flags.items() if name != "stay"},
                "authorid": feeds[feed][0] if feed in feeds else GONE,
                "bgm_song_id": 5352 if known else GONE,
                "log_videoplayseconds": np.float32(np.log(11)) if known else math.nan,
                "manual_keyword_list": filled([7, 8] if known else [], 10),
                "machine_keyword_list": filled([], 10),
                "manual_tag_list": filled([12, 300] if known else [], 10),
                "machine_tag_list": filled([12, 13] if known else [], 10),
            }
        )
    files = {"user_action.csv": actions}
    files["feed_info.csv"] = FEED_HEADER + "\n" + lines([[feed, *values] for feed, values in feeds.items()])
    merged = {"click": ["play"], "d_mi": ["read_comment", "click_avatar"], "d_ma": ["like", "favorite"]}
    merged["purchase"] = ["comment", "forward", "follow"]
    levels = {level: [any(row[name] for name in group) for row in rows] for level, group in merged.items()}
    lists = {f"{origin}_{kind}_list" for origin in ("manual", "machine") for kind in ("tag", "keyword")}
    of_item = {"feedid", "authorid", "bgm_song_id", "bgm_singer_id", "log_videoplayseconds", *lists}
    return Written(files, rows, levels, of_item, "date:2021-01-13,2021-01-14")


def entries(features):
    return "\x01".join(f"{field}\x02{value}\x03{weight}" for field, value, weight in features)


def aliccp():
    rng, files, rows = random.Random(4), {}, []
    for part in ("test", "train"):
        histories = {"5f0a": [], "77bc": [BIG + i for i in range(60)]}  # the same keys in both parts
        common = [["00", 0, ""]]
        for key, history in histories.items():
            features = [("101", BIG + len(part), 1.0), *(("109_14", item, 0.7) for item in history)]
            common.append([key, len(features), entries(features)])
        files[f"common_features_{part}.csv"] = lines(common)
        impressions = []
        for i in range(10):
            key = ["5f0a", "77bc", "00", "gone"][i % 4]
            click, buy = int(rng.random() < 0.5), int(rng.random() < 0.5)
            features = [("205", BIG + i, 1), ("210", 3, 1.0), ("508", 9, 2.3), ("210", 4, 1.0), ("999", 1, 1)]
            features = [] if i == 5 else features
            impressions.append([i, click, buy, key, len(features), entries(features)])
            if (click, buy) == (0, 1):
                continue
            rows.append(
                {
                    **{"click": click, "buy": buy, "field_205": BIG + i if features else GONE},
                    **{"field_210": 3 if features else GONE, "field_206": GONE, "field_301": GONE},
                    "part": part.encode(),
                    "field_101": BIG + len(part) if key in histories else GONE,
                    "field_109_14": filled(histories.get(key, []), 50),
                    "field_150_14": filled([], 50),
                }
            )
        files[f"sample_skeleton_{part}.csv"] = lines(impressions)
    levels = {"click": [row["click"] for row in rows], "purchase": [row["buy"] for row in rows]}
    of_item = {f"field_{field}" for field in (205, 206, 207, 210, 216, 508, 509, 702, 853)}
    return Written(files, rows, levels, of_item)


def jdsearch():
    rng, searches, rows = random.Random(5), [], []
    products = {BIG: [81, 1, 2, 3, 4, BIG + 9], BIG + 1: ["", 1, 2, 5, "", 6]}
    header = "query candidate_wid_list candidate_label_list history_qry_list history_wid_list history_type_list"
    for i in range(6):
        wids = [[BIG, BIG + 1, 404], [BIG + 1], []][i % 3]
        labels = [rng.randrange(4) for _ in wids]
        terms, history = [[12, 32, 56], [-1]][i % 2], list(range(100, 100 + [0, 3, 3, 3, 70, 3][i]))
        lists = ["_".join(map(str, values)) for values in (wids, [f"{label}.0" for label in labels], [-1], history)]
        searches.append(["\x18".join(map(str, terms)), *lists, "CLICK", "0_5"])
        for wid, label in zip(wids, labels):
            brand, *categories, shop = [GONE if v == "" else v for v in products.get(wid, [""] * 6)]
            file, number = ("user_behavior_data_2.txt", i - 4) if i > 3 else ("user_behavior_data.txt", i)
            row = {
                "search": f"{file}:{number}".encode(),
                "wid": wid,
                "label": label,
                "brand_id": brand,
                "shop_id": shop,
            }
            row |= {f"cate_id_{level}": category for level, category in enumerate(categories, 1)}
            rows.append(row | {"terms": filled(terms, 16), "history": filled(history[-50:], 50)})
    names = [f"{word}_{level}" for level in range(1, 5) for word in ("cate_id", "cate_name")]
    meta = ["wid", "name", "brand_id", "brand_name", *names, "shop_id"]
    table = []
    for wid, (brand, *categories, shop) in products.items():
        names = [cell for category in categories for cell in (category, "x")]
        table.append([wid, 'a "name', brand, "x", *names, shop])
    heads = [*header.split(), "history_time_list"]
    files = {"user_behavior_data.txt": lines([heads, *searches[:4]], "\t")}
    files["user_behavior_data_2.txt"] = lines([heads, *searches[4:]], "\t")
    files["product_meta_data.txt"] = lines([meta, *table], "\t")
    least = {"click": 1, "d_ma": 2, "purchase": 3}
    levels = {name: [row["label"] >= value for row in rows] for name, value in least.items()}
    of_item = {"wid", "brand_id", "shop_id", *(f"cate_id_{level}" for level in range(1, 5))}
    return Written(files, rows, levels, of_item)


HUP_LABELS = {"detail_comments": "6", "detail_specification": "7", "detail_bottom": "8", "cart": "9", "order": "10"}


def hup_sessions(rng, count, tokens, skus):
    """Returns sessions in the layout of HUP, of some random tokens each."""
    sessions = [[(BIG + rng.randrange(skus), rng.randrange(1, 11)) for _ in range(tokens(i))] for i in range(count)]
    return "".join(
        " ".join(f"{sku}+{behavior}+{sku % 7}+3+4" for sku, behavior in session) + " " * (i % 4) + "\n"
        for i, session in enumerate(sessions)
    )


def jd_hup():
    rng, rows = random.Random(6), []
    files = {
        file: hup_sessions(rng, 4, [1, 9, 30, 4].__getitem__, 6)
        for file in ("Appliances/JD_Applicances", "Computers/JD_Computers")
    }
    for file, text in files.items():
        for number, line in enumerate(text.splitlines()):
            skus = re.findall(r"(\d+)\+\d+\+\d+\+3\+4", line)
            for sku in dict.fromkeys(skus):
                before = [int(other) for other in skus[: skus.index(sku)]]
                entry, *others = re.findall(rf"\b{sku}\+(\d+)", line)
                if entry not in HUP_LABELS.values():
                    row = {"session": f"{Path(file).name}:{number}".encode(), "sku": int(sku), "category": int(sku) % 7}
                    row |= {name: int(code in others) for name, code in HUP_LABELS.items()}
                    rows.append(row | {"click": 1, "entry": int(entry), "history": filled(before[-20:], 20)})
    micro = [name for name in HUP_LABELS if name.startswith("detail")]
    levels = {"click": [1 for _ in rows], "d_mi": [any(row[name] for name in micro) for row in rows]}
    levels |= {"d_ma": [row["cart"] for row in rows], "purchase": [row["order"] for row in rows]}
    return Written(files, rows, levels, {"sku", "category", "entry"})


WRITERS = {
    writer.__name__: functools.cache(writer)
    for writer in (
        *(aliexpress, tenrec, trendyol, wechat2021, aliccp, jdsearch, jd_hup),
        *(taobao, rees46, retailrocket, otto),
    )
}


def write_log(name, folder, **changes):
    """Writes the files of a log, see `Written.write`, and returns the folder."""
    return WRITERS[name]().write(folder, **changes)


def open_rows(name, path, bad=None):
    """Returns the rows of a log in a folder, each a dict."""
    return [row for batch in open_source(name, str(path)).batches(bad) for row in batch.rows.to_pylist()]


@pytest.fixture(scope="module", params=WRITERS)
def log(request, tmp_path_factory):
    """(what was written, folder of the raw log, data folder that `hm3 convert` made of it, name of the log)."""
    raw, output = write_log(request.param, tmp_path_factory.mktemp("raw")), tmp_path_factory.mktemp("out") / "data"
    written = WRITERS[request.param]()
    flags = [f"--source={request.param}", f"--input={raw}", f"--output_dir={output}", f"--split={written.split}"]
    assert _status(["convert", *flags]) == 0
    return written, raw, DataFolder.open(str(output)), request.param


def stored(data):
    """Returns {column: list} of all splits in order."""
    parts = [
        read_stored(f"{data.path}/{split}", data.schema.columns)
        for split, statistics in data.statistics().items()
        if statistics.rows
    ]
    return {name: np.concatenate([part[name] for part in parts]).tolist() for name in parts[0]}


def test_the_impressions_of_a_log_are_stored_with_what_is_joined_to_them(log):
    written, _, data, _ = log
    found = stored(data)
    for name in written.rows[0]:
        expected = [row[name] for row in written.rows]
        assert len(found[name]) == len(expected)
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_the_labels_of_a_log_are_those_counted_by_hand(log):
    written, _, data, _ = log
    assert [level.name for level in data.schema.levels] == list(written.levels)
    rows = [[bool(flag) for flag in row] for row in zip(*written.levels.values())]
    patterns = collections.Counter("".join(str(int(flag and row[0])) for flag in row) for row in rows)
    splits = data.statistics().values()
    assert sum((collections.Counter(split.label_patterns) for split in splits), collections.Counter()) == patterns
    for place, level in list(enumerate(written.levels))[1:]:
        broken = sum(row[place] and not row[0] for row in rows)
        assert sum(split.violations[f"{level} without click"] for split in splits) == broken


def test_inputs_of_a_log_are_of_the_user_and_request_or_of_the_item(log):
    written, _, data, _ = log
    assert {column.name for column in data.schema.inputs if column.entity == "item"} == written.of_item
    assert len(data.schema.with_role("group")) == 1


def test_a_log_with_dates_is_split_by_them(log):
    written, _, data, _ = log
    sizes = [len(written.rows), 0, 0]
    if written.split.startswith("date"):
        days = [str(row["date"]).strip("b'").replace("-", "") for row in written.rows]
        first, second = written.split.removeprefix("date:").replace("-", "").split(",")
        sizes = [sum(day < first for day in days), sum(first <= day < second for day in days)]
        sizes.append(len(days) - sum(sizes))
        assert min(sizes) > 0
    assert [split.rows for split in data.statistics().values()] == sizes


def test_the_files_of_a_log_by_themselves_have_the_rows_of_all(log, monkeypatch):
    monkeypatch.setattr(base, "_PART_BYTES", 1)
    monkeypatch.setattr(base, "PART_ROWS", 1)
    _, raw, _, name = log
    source = open_source(name, raw)
    parts = source.parts()
    assert [part.count_rows() for part in parts] == [sum(b.rows.num_rows for b in part.batches()) for part in parts]
    of_parts, of_all = ([batch.rows for each in sources for batch in each.batches()] for sources in (parts, [source]))
    assert pa.Table.from_batches(of_parts) == pa.Table.from_batches(of_all)


@pytest.fixture
def light_training(monkeypatch):
    """Training whose model is not traced nor exported on trial, and whose datasets of the same columns are made once."""
    make, made = Reader._dataset, {}

    def make_once(reader, size, seed, *args):
        key = (
            reader.index.files,
            tuple(reader.features),
            str(reader.merged_levels),
            reader.split_levels,
            reader.carry,
            seed,
        )
        if key not in made:
            made[key] = make(reader, size, seed, *args)
        return made[key]

    monkeypatch.setattr(Reader, "_dataset", make_once)
    monkeypatch.setattr(train, "check_export", lambda run: None)
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


FOUND = {  # checks that training on all inputs warns of: labels by chance, side tables of which some are not written
    "aliexpress": {"constant"},
    "tenrec": {"hierarchy", "missing"},
    "trendyol": {"hierarchy"},
    "wechat2021": {"hierarchy", "missing", "constant"},
    "aliccp": {"missing"},
}


def config_of(method, features=()):
    model = ModelConfig(method, tower_units=(4,), dropout=0.0, embedding_dim=2, features=features)
    return Config(model=model, training=TrainingConfig(global_batch_size=1024, epochs=1))


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
def test_every_method_whose_levels_a_log_has_trains_an_epoch_on_it(log, tmp_path, light_training, monkeypatch, caplog):
    *_, data, log_name = log
    names = fitting_methods([level.name for level in data.schema.levels])
    some = tuple(column.name for column in data.schema.inputs[-4:])
    for name in names:  # the last one on all inputs: what they are is nothing to the method
        config = config_of(name, () if name == names[-1] else some)
        monkeypatch.setattr(train, "validate_sample", validate_sample if name == names[-1] else lambda *args: ())
        train.train_and_evaluate(config, data.path, f"{tmp_path}/{name}")
        logged = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        (epoch,) = [line for line in map(json.loads, logged) if line.get("epoch_end")]
        assert epoch["step"] == 1 and 0 < epoch["loss"] < math.inf, name
        assert set(epoch["losses"]) >= set(METHODS[name].levels), name
    warned = [entry.message for entry in caplog.records if entry.levelname == "WARNING"]
    found = {message.split(": ")[2] for message in warned if message.startswith("the log: ")}
    assert found == FOUND.get(log_name, set())


def test_a_method_whose_levels_a_log_does_not_have_is_refused_with_those_that_fit(log):
    *_, data, _ = log
    levels = [level.name for level in data.schema.levels]
    fitting = fitting_methods(levels)
    for name in METHODS.keys() - fitting:
        with pytest.raises(ConfigError, match=rf"'{name}': .*got 'd_m[ia]'.* has \({', '.join(fitting)}\), or"):
            build_model(config_of(name), data.schema)


def on_the_page(name):
    """Returns the methods that the row of a log in docs/datasets.md names, in its last cell."""
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    cell = row.split("|")[-2].strip()
    return set(METHODS) if cell == "all" else set(re.findall("`(.*?)`", cell))


def test_the_page_says_which_methods_fit_a_log(log):
    *_, data, name = log
    assert on_the_page(name) == set(fitting_methods([level.name for level in data.schema.levels]))


def test_the_page_says_that_all_methods_fit_kuairand():
    assert on_the_page("kuairand") == set(fitting_methods([level.name for level in kuairand.SCHEMA.levels]))


@pytest.mark.parametrize("name", PUBLIC_LOGS)
def test_a_public_log_has_a_schema_of_its_own_and_a_row_on_the_page(tmp_path, name):
    with pytest.raises(UsageError, match=f"--source={name}: expected no --schema"):
        open_source(name, str(tmp_path), behaviors="click")
    assert on_the_page(name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_without_the_log_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}.*, found none"):
        open_source(name, str(tmp_path)).files.dataset()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("aliexpress", {"es_user_train": None}, r"es_user_train\.csv: expected csv files, found none"),
        ("aliexpress", {"nl_item_train": (",c42", "")}, r"expected csv.*Expected 49 columns, got 48"),
        ("aliccp", {"common_features_test": None}, r"common_features_test\.csv: expected csv files, found none"),
        ("aliccp", {"common_features_test": ("101\x02", "101:")}, r"common_features_test\.csv: .*a feature '101:"),
        ("wechat2021", {"feed_info": ("authorid", "author")}, r"feed_info\.csv: expected the column 'authorid'"),
        ("wechat2021", {"feed_info": ("12;300", "12;x")}, r"user_action\.csv: rows after 0: expected the WeChat"),
        ("jdsearch", {"user_behavior_data": (".0_", ".0_1.0_")}, r"rows after 0: .*number of candidate_label_list"),
        ("jdsearch", {"product_meta_data": ("shop_id", "shop")}, r"product_meta_data\.txt: expected the column 'shop"),
        ("jd_hup", {"Computers/JD_Computers": ("+3+4", "")}, r"JD_Computers: rows.*a token '\d+\+\d+\+\d', not"),
        ("tenrec", {"ctr_data_1M": ("share", "shared")}, r"1M\.csv: expected the column 'share'.*'shared'"),
        ("taobao", {"UserBehavior": (",fav,", ",like,")}, r"rows after 0: .*a behavior 'like', not one of pv, cart"),
        ("taobao", {"UserBehavior": (f"{BIG},", ",")}, r"UserBehavior\.csv: rows after 0: .*events without user_id"),
        ("rees46", {"2019-Dec": (" UTC", "")}, r"2019-Dec\.csv: rows after 0: expected the REES46 layout"),
        ("rees46", {"2019-Nov": ("brand", "maker")}, r"2019-Nov\.csv: expected the column 'brand'"),
        ("retailrocket", {"item_properties_part1": (",value", ",values")}, r"part1\.csv: expected the column 'value'"),
        ("retailrocket", {"item_properties_part2": ("categoryid,", "categoryid,n")}, r"expected whole numbers"),
        ("otto", {"train": ('"aid"', '"item"')}, r"train\.jsonl: rows after 0: .*events without item_id"),
        ("otto", {"train": ("}]}", "}]")}, r"train\.jsonl: expected json rows after row 0"),
    ],
)
def test_a_log_that_is_not_in_its_layout_is_named_by_its_file(tmp_path, name, changes, message):
    with pytest.raises(DataError, match=message):
        list(open_source(name, write_log(name, tmp_path, **changes)).batches())


def test_a_folder_with_two_logs_of_tenrec_is_refused_and_each_file_is_read(tmp_path):
    plain = "user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age\n1,2,1,0,0,1,3,4,1,5\n"
    (tmp_path / "QK-video.csv").write_text(plain)
    write_log("tenrec", tmp_path)
    with pytest.raises(
        DataError, match="expected one of QK-video.csv, .*found .*QK-video.csv.*; give --input one file"
    ):
        open_source("tenrec", str(tmp_path))
    (batch,) = open_source("tenrec", str(tmp_path / "QK-video.csv")).batches()
    user, item = {"user_id": 1, "gender": 1, "age": 5}, {"item_id": 2, "video_category": 3}
    assert batch.rows.to_pylist() == [{**user, **item, "click": 1, "like": 0, "follow": 0, "share": 1}]


def test_a_compressed_file_of_sessions_is_read_as_it_is(tmp_path):
    path = tmp_path / "sessions.gz"
    with gzip.open(path, "wt") as file:
        file.write("7+5+1+2+3 7+10+1+2+3\n")
    (batch,) = open_source("jd_hup", str(path)).batches()
    (row,) = batch.rows.to_pylist()
    assert (row["sku"], row["entry"], row["history"], row["cart"], row["order"]) == (7, 5, [], 0, 1)


def test_no_input_of_sessions_tells_by_itself_what_happened_to_a_product(tmp_path):
    (tmp_path / "JD_Computers").write_text(hup_sessions(random.Random(0), 200, lambda _: 40, 30))
    (batch,) = open_source("jd_hup", str(tmp_path)).batches()
    rows = batch.rows.to_pylist()
    assert len(rows) > 1_000
    for name in ("entry", "sku", "category", "history"):
        happened = collections.defaultdict(list)
        for row in rows:
            value = len(row[name]) if name == "history" else row[name]
            happened[value].append(any(row[label] for label in HUP_LABELS))
        for value, flags in happened.items():
            assert len(flags) < 30 or 0 < sum(flags) < len(flags), (name, value)


@pytest.mark.parametrize(
    ("name", "count", "why"),
    [
        ("aliexpress", 3, "items without their page"),
        ("aliccp", 6, "purchases without a click"),
        ("jd_hup", 19, "products of a session without the click that led to them"),
    ],
)
def test_rows_that_a_source_leaves_out_are_counted(tmp_path, caplog, name, count, why):
    caplog.set_level("INFO", "data_pipeline")
    source = open_source(name, write_log(name, tmp_path))
    convert(source, str(tmp_path / "data"), FractionRule((0.5, 0.2, 0.3), 0))
    assert f"convert: {count} rows left out: {why}" in caplog.messages


@pytest.mark.parametrize("name", ["aliccp", "aliexpress"])
def test_a_log_with_parts_is_split_into_them(tmp_path, name):
    splits = convert(open_source(name, write_log(name, tmp_path)), str(tmp_path / "data"), ColumnRule("part"))
    parts = collections.Counter(row["part"] for row in WRITERS[name]().rows)
    assert {split: found.rows for split, found in splits.items()} == {
        "train": parts[b"train"],
        "validation": 0,
        "test": parts[b"test"],
    }


@pytest.mark.parametrize(("name", "column"), [("jd_hup", "session"), ("jdsearch", "search")])
def test_a_session_keeps_its_number_when_a_line_before_it_is_skipped(tmp_path, name, column):
    path = (
        Path(write_log(name, tmp_path))
        / {"jd_hup": "Computers/JD_Computers", "jdsearch": "user_behavior_data.txt"}[name]
    )
    lines = path.read_text().splitlines(keepends=True)
    broken = {"jd_hup": 1, "jdsearch": 2}[name]
    expected = [row[column] for row in open_rows(name, tmp_path) if not row[column].endswith(f"{path.name}:1")]
    lines[broken] = "\x01\t" + lines[broken]
    path.write_text("".join(lines))
    bad = BadRecords(1)
    assert [row[column] for row in open_rows(name, tmp_path, bad)] == expected and len(bad) == 1


def test_a_large_event_log_is_joined_in_parts_of_its_users(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "data_pipeline")
    path, found = write_log("taobao", tmp_path), []
    for size in (event_log._PART_BYTES, 5_000):
        monkeypatch.setattr(event_log, "_PART_BYTES", size)
        found.append([row for batch in open_source("taobao", path).batches() for row in batch.rows.to_pylist()])
    users = [row["user_id"] for row in found[1]]
    assert users != [row["user_id"] for row in found[0]]
    assert sorted(map(str, found[0])) == sorted(map(str, found[1]))
    assert caplog.messages[0] == caplog.messages[1]


def test_a_property_that_no_item_has_is_missing(tmp_path):
    changes = {f"item_properties_part{part}": (",available,", ",sold out,") for part in (1, 2)}
    rows = open_rows("retailrocket", write_log("retailrocket", tmp_path, **changes))
    assert {row["available"] for row in rows} == {None} < {row["category_id"] for row in rows}


def test_an_event_log_in_which_nobody_bought_is_read(tmp_path):
    (tmp_path / "UserBehavior.csv").write_text("1,2,3,pv,1511600000\n")
    (row,) = open_rows("taobao", tmp_path)
    assert (row["item_id"], row["click"], row["cart"], row["purchase"]) == (2, 1, 0, 0)


@pytest.mark.parametrize("lines", [[], ["1,2,3,cart,1511600000"]])
def test_an_event_log_without_a_view_is_refused(tmp_path, lines):
    (tmp_path / "UserBehavior.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"UserBehavior\.csv: expected (csv files|views of items), "):
        list(open_source("taobao", str(tmp_path)).batches())


def test_events_that_belong_to_no_visit_are_counted(tmp_path, caplog):
    caplog.set_level("INFO", "data_pipeline")
    list(open_source("rees46", write_log("rees46", tmp_path)).batches())
    found = dict(re.findall(r"^(\w+) +(?:[\d,]+ +){3}([\d,]+) ", caplog.text, re.MULTILINE))
    views = {}
    rows = [line.split(",") for file in WRITERS["rees46"]().files.values() for line in file.splitlines()[1:]]
    for time, kind, item, *_, user, _ in rows:
        if kind == "view":
            views[user, item] = min(time, views.get((user, item), time))
    lone = {(kind, user, item, time) for time, kind, item, *_, user, _ in rows if time < views.get((user, item), "9")}
    assert {name: int(found[name]) for name in ("cart", "purchase")} == {
        name: sum(event[0] == name for event in lone) for name in ("cart", "purchase")
    }
    assert "events of 'remove_from_cart', which has no window" in caplog.text


def test_an_event_log_without_duckdb_says_what_to_install(tmp_path, monkeypatch):
    for module in [*sys.modules]:
        if module.startswith(("data_pipeline.event_", "data_pipeline.sources.")) or module.split(".")[0] == "duckdb":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(Hm3Error, match="--source=otto: expected the packages of the extra 'join', but duckdb is not"):
        open_source("otto", str(tmp_path))


# What the sources share


def test_a_row_is_looked_up_by_number_or_text_and_is_of_nulls_where_there_is_none():
    for keys, wanted in (([BIG + 1, BIG], [BIG, 5, None, BIG + 1]), (["b", "ä"], ["ä", "aa", None, "b"])):
        table = SideTable.of(pa.table({"key": keys, "value": [1, 2]}), "key")
        assert table.look_up(pa.array(wanted)).column("value").to_pylist() == [2, None, None, 1]


def test_lists_are_cut_from_values():
    values = pa.array([1, 2, 3, 4])
    assert windows(values, np.array([2, 0, 4]), np.array([2, 1, 0])).to_pylist() == [[3, 4], [1], []]
    assert last_values(pa.array([[1, 2, 3], None, [], [4]]), 2).to_pylist() == [[2, 3], [], [], [4]]


def test_numbers_are_read_from_texts_without_a_float_on_the_way():
    assert split_numbers(pa.array([f"{BIG};7", "", None, "-1"]), ";").to_pylist() == [[BIG, 7], None, None, [-1]]
    assert whole_numbers(pa.array([f"{BIG}.0", "10", None])).to_pylist() == [BIG, 10, None]
