"""Writers of public event logs in their official layouts, and the visits in their texts, found event by event."""

import csv
import datetime
import io
import json
import math
import random
from typing import NamedTuple

import numpy as np

from tests.data_pipeline.written_logs import BIG, GONE, Written, filled, lines

DAY = 86_400_000
WINDOWS = {"cart": DAY, "favorite": DAY, "purchase": 7 * DAY}
START = 1_511_568_000_000  # 2017-11-25 00:00:00 UTC
CARTS = {"view": "view", "addtocart": "cart", "transaction": "purchase"}


class Event(NamedTuple):
    """An event as the text of a log says it; time in milliseconds since 1970, features by column."""

    user: int
    item: int
    time: int
    behavior: str
    features: dict


def visits(events, labels, hours=0):
    """Returns the rows of the visits of events, in the order of the first views."""
    views = {}
    for place, event in enumerate(events):
        if event.behavior == "view":
            views.setdefault(event[:2], []).append((event.time, place))
    starts = {}  # {(user, item): [(time, place)]} of the views that begin a visit
    for key, seen in views.items():
        for before, (time, place) in zip([(-math.inf, 0), *sorted(seen)], sorted(seen)):
            if time - before[0] > 30 * 60 * 1000:
                starts.setdefault(key, []).append((time, place))
    happened = {}
    for event in events:
        before = [start for start in starts.get(event[:2], []) if start[0] <= event.time]
        if event.behavior in labels and before and event.time - before[-1][0] <= WINDOWS[event.behavior]:
            happened.setdefault(before[-1][1], set()).add(event.behavior)
    rows = {}
    for (user, item), found in starts.items():
        for time, place in found:
            past = [(t, other) for (u, other), ts in starts.items() if u == user for t, _ in ts if t < time]
            clock = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=time, hours=hours)
            rows[place] = {
                **{"user_id": user, "item_id": item, "click": 1, "hour": clock.hour},
                **{"date": str(clock.date()).encode(), **events[place].features},
                **{label: int(label in happened.get(place, ())) for label in labels},
                "click_history": filled([other for _, other in sorted(past, reverse=True)], 50),
            }
    return [rows[place] for place in sorted(rows)]


def written(files, rows, labels, of_item=(), split="fraction:1,0,0"):
    """Returns a log of events and what is to come of it; its macro behaviors are the labels before the purchase."""
    levels = {"click": [1 for _ in rows], "d_ma": [any(row[name] for name in labels[:-1]) for row in rows]}
    levels["purchase"] = [row["purchase"] for row in rows]
    return Written(files, rows, levels, {"item_id", *of_item}, split)


def random_events(rng, behaviors, count=240):
    """Returns (user, item, milliseconds after the start, behavior) over ten days, repeated ones among them."""
    events = []
    for _ in range(count):
        user, item = BIG + rng.randrange(4), BIG + rng.randrange(3)
        time = rng.randrange(10) * DAY + rng.randrange(3) * 3_600_000 + rng.choice([0, 0, 1_000, 1_800_000, 1_801_000])
        events.append((user, item, time, rng.choice([*behaviors, *behaviors[:1] * 2])))
    return events + rng.sample(events, 20)


def taobao():
    rng = random.Random(7)
    events = sorted(random_events(rng, ["pv", "cart", "fav", "buy"]), key=lambda event: event[2])
    beijing = START - 8 * 3_600_000  # midnight there
    rows = [[user, item, 2**24 + item % 2, name, (beijing + time) // 1000] for user, item, time, name in events]
    rows.insert(5, [BIG, BIG, 2**24, "pv", -2_134_949_234])  # clocks that are wrong
    rows.append([BIG, BIG, 2**24, "buy", 2_122_867_355])
    text = lines(rows)
    names, found = {"pv": "view", "cart": "cart", "fav": "favorite", "buy": "purchase"}, []
    for line in text.splitlines():
        user, item, category, name, time = line.split(",")
        day = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=int(time), hours=8)
        if datetime.datetime(2017, 11, 25) <= day < datetime.datetime(2017, 12, 4):
            found.append(Event(int(user), int(item), int(time) * 1000, names[name], {"category_id": int(category)}))
    labels = ["cart", "favorite", "purchase"]
    files = {"UserBehavior.csv": text}
    return written(files, visits(found, labels, 8), labels, ["category_id"], "date:2017-11-30,2017-12-02")


def rees46():
    rng = random.Random(8)
    header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session"
    files = dict.fromkeys(("2019-Dec.csv", "2019-Nov.csv", "2020-Jan.csv"), header + "\r\n")
    brands = ["samsung", "", '"a, ""b"""', "märke"]
    first = datetime.datetime(2019, 11, 26)
    for user, item, time, name in random_events(rng, ["view", "cart", "remove_from_cart", "purchase"]):
        clock = first + datetime.timedelta(milliseconds=time)
        code = ["electronics.smartphone", ""][item % 2]
        row = [f"{clock} UTC", name, item, 2**60 + item % 2, code, brands[user % 4], rng.choice([0.0, 9.5, 2574.07])]
        files[clock.strftime("%Y-%b.csv")] += lines([[*row, user, "9d1-00" if time % 2 else ""]]).replace("\n", "\r\n")
    found = []
    for _, text in sorted(files.items()):
        for row in csv.DictReader(io.StringIO(text, newline="")):
            time = np.datetime64(row["event_time"].removesuffix(" UTC"), "ms").astype(int)
            features = {"category_id": int(row["category_id"]), "category_code": row["category_code"].encode()}
            features |= {"brand": row["brand"].encode(), "price": np.float32(row["price"])}
            ids = int(row["user_id"]), int(row["product_id"])
            found.append(Event(*ids, int(time), row["event_type"], features))
    labels = ["cart", "purchase"]
    return written(files, visits(found, labels), labels, ["category_id", "category_code", "brand", "price"])


def retailrocket():
    rng = random.Random(9)
    events = random_events(rng, list(CARTS))
    rows = [[START + time, user, name, item, 7 if name == "transaction" else ""] for user, item, time, name in events]
    files = {"events.csv": "timestamp,visitorid,event,itemid,transactionid\n" + lines(rows)}
    changes = [[START + day * DAY, BIG + item, "categoryid", BIG + day] for day in (2, 5, 8) for item in (0, 1)]
    changes += [[START + day * DAY, BIG, "available", day % 2] for day in (1, 4)]
    changes += [[START, BIG, "790", "n32760.000"], [START, 1, "888", "1116713 960601 n277.200"]]
    rng.shuffle(changes)
    for part in (1, 2):
        text = "timestamp,itemid,property,value\n" + lines(changes[part - 1 :: 2])
        files[f"item_properties_part{part}.csv"] = text
    found = []
    for line in files["events.csv"].splitlines()[1:]:
        time, user, name, item, _ = line.split(",")
        features = {"category_id": GONE, "available": GONE}
        for change, of_item, kind, value in sorted(changes, key=lambda change: change[0]):
            if of_item == int(item) and change <= int(time) and kind in ("categoryid", "available"):
                features["category_id" if kind == "categoryid" else kind] = value
        found.append(Event(int(user), int(item), int(time), CARTS[name], features))
    labels = ["cart", "purchase"]
    return written(files, visits(found, labels), labels, ["category_id", "available"])


def otto():
    rng = random.Random(10)
    sessions = {BIG - 1: []}
    for user, item, time, name in random_events(rng, ["clicks", "carts", "orders"]):
        sessions.setdefault(user, []).append({"aid": item, "ts": START + time + 25, "type": name})
    text = "".join(json.dumps({"session": user, "events": events}) + "\n" for user, events in sessions.items())
    names, found = {"clicks": "view", "carts": "cart", "orders": "purchase"}, []
    for line in text.splitlines():
        session = json.loads(line)
        for event in session["events"]:
            found.append(Event(session["session"], event["aid"], event["ts"], names[event["type"]], {}))
    labels = ["cart", "purchase"]
    return written({"train.jsonl": text}, visits(found, labels), labels)
