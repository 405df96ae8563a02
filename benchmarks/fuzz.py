"""Damages shards at random and reads them: what comes back must be right, and what does not must be named and counted.

python benchmarks/fuzz.py [--shards=10000] [--seed=0]

Each shard has bytes changed (anywhere, in the length of a record, in a checksum, in the data), is cut (anywhere, between
records, within a length), emptied or removed, or is left alone; some folders have a damaged index.json, some none. Each is
read twice: as by default, where the error must name file and byte offset, and only intact shards may be read to their end;
and with damage skipped, where exactly the rows come back that a model of the damage says, equal to those written. Another
process does it; if it ends, or does not come to the next shard within two minutes, that is a crash or a hang. Status 1 for
any of these.
"""

import collections
import dataclasses
import multiprocessing
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from absl import app, flags

from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from hm3_tf.progress import Progress

_SHARDS = flags.DEFINE_integer("shards", 10_000, "Shards to damage.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the damage.")

HASHING = Hashing(buckets=1_000)
COLUMNS = (
    Column("id", "int64", hashing=HASHING),
    Column("brand", "string", hashing=HASHING),
    Column("tags", "int64", shape=VARIABLE, max_length=3, hashing=HASHING),
    Column("price", "float"),
    Column("click", "int64", "behavior"),
)
SCHEMA = Schema(COLUMNS, (Level("click", ("click",), gate=True),))
ROWS, BLOCK_ROWS = 2_200, 1_024  # of a shard: three blocks
HEADER, FRAMING = 12, 16  # bytes before the data of a record, and around it
MISSING = -(2**63)
FLIPS = ("anywhere", "length", "length checksum", "data", "data checksum")
CUTS = ("cut", "cut between records", "cut in a length", "emptied", "removed")
OK, DATA, LENGTH, GONE = range(4)  # states of a record
SILENCE_S = 120
_TURNS = 6  # of a record format: once without an index, once with a damaged one


def make_log(shards: int) -> tuple[pa.RecordBatch, dict[str, np.ndarray]]:
    """Returns rows as they are written, and {column: array} as they are to be read."""
    rng, rows = np.random.default_rng(0), shards * ROWS
    lengths, clicks = rng.integers(0, 4, rows), rng.integers(0, 2, rows)
    tags = np.where(np.arange(3) < lengths[:, np.newaxis], rng.integers(0, 2**62, (rows, 3)), MISSING)
    price = np.where(rng.random(rows) < 0.1, np.nan, rng.random(rows)).astype(np.float32)
    brand = np.array([f"märke {i}".encode() for i in rng.integers(0, 99, rows)], object)
    right = {"id": 2**53 + np.arange(rows), "brand": brand, "tags": tags, "price": price, "click": clicks}
    lists = pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(lengths)), pa.int32()), tags[tags != MISSING])
    return pa.RecordBatch.from_pydict(right | {"tags": lists, "price": pa.array(price, from_pandas=True)}), right


@dataclasses.dataclass(frozen=True)
class Template:
    """A split as written: its folder, and the bytes and record offsets (the end of the file at last) of each shard."""

    folder: pathlib.Path
    record_format: str
    data: list[bytes]
    offsets: list[np.ndarray]

    @classmethod
    def write(cls, folder: pathlib.Path, record_format: str, rows: pa.RecordBatch) -> "Template":
        from data_pipeline.write import SplitWriter, write_index

        folder.mkdir()
        shards = []
        for start in range(0, rows.num_rows, ROWS):
            writer = SplitWriter(str(folder), COLUMNS, record_format, name=f"part-{start // ROWS:05d}")
            writer.write(rows.slice(start, ROWS))
            shards += writer.finish()
        write_index(str(folder), record_format, shards)
        data = [file.read_bytes() for file in sorted(folder.glob("*.tfrecord"))]
        return cls(folder, record_format, data, [record_offsets(shard) for shard in data])

    def rows_of(self, shard: int, records: list[int]) -> np.ndarray:
        """Returns the numbers of the rows of some records of a shard."""
        rows = np.arange(shard * ROWS, (shard + 1) * ROWS)
        if self.record_format == "row":
            return rows[records]
        return np.concatenate([rows[:0], *(rows[i * BLOCK_ROWS : (i + 1) * BLOCK_ROWS] for i in records)])


def record_offsets(data: bytes) -> np.ndarray:
    offsets = [0]
    while offsets[-1] < len(data):
        offsets.append(offsets[-1] + int.from_bytes(data[offsets[-1] : offsets[-1] + 8], "little") + FRAMING)
    return np.array(offsets)


def damage(rng: np.random.Generator, kind: str, data: bytes, offsets: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Returns the bytes of a shard after damage, and the state of each record."""
    states = np.full(len(offsets) - 1, OK)
    record = rng.integers(len(states))
    start, stop = offsets[record], offsets[record + 1]
    if kind in CUTS:
        within = {"cut between records": start, "cut in a length": start + rng.integers(1, 8)}
        end = within.get(kind, rng.integers(len(data)) if kind == "cut" else 0)
        states[offsets[1:] > end] = GONE
        return data[:end], states
    ranges = {
        "anywhere": (0, len(data)),
        "length": (start, start + 8),
        "length checksum": (start + 8, start + HEADER),
        "data": (start + HEADER, stop - 4),
        "data checksum": (stop - 4, stop),
    }
    places = [] if kind == "intact" else rng.integers(*ranges[kind], rng.integers(1, 9) if kind == "anywhere" else 1)
    changed = bytearray(data)
    for place in np.unique(places).astype(int):
        changed[place] ^= int(rng.integers(1, 256))
        record = np.searchsorted(offsets, place, side="right") - 1
        states[record] = max(states[record], LENGTH if place - offsets[record] < HEADER else DATA)
    return bytes(changed), states


def survivors(states: np.ndarray, known: list[int]) -> list[int]:
    """Returns the records that can be found: after one with a corrupt length only from the next `known` one on."""
    kept, record = [], 0
    while record < len(states) and states[record] != GONE:
        if states[record] == LENGTH:
            record = next((start for start in known if start > record), len(states))
            continue
        if states[record] == OK:
            kept.append(record)
        record += 1
    return kept


class Fuzzer:
    """Damages a folder of shards and reads it, again and again.

    Args:
      folder: Where it works.
      shards: Shards of the folder.
      seed: Of the damage.
      on_shard: Called after each shard.
    """

    def __init__(
        self, folder: pathlib.Path, shards: int, seed: int, on_shard: Callable[[], None] = lambda: None
    ) -> None:
        from data_pipeline.index import load_index
        from data_pipeline.read import PartReader, Reader

        self._folder, self._rng, self._on_shard = folder, np.random.default_rng(seed), on_shard
        rows, self._right = make_log(shards)
        self._templates = [Template.write(folder / name, name, rows) for name in ("packed", "row")]
        names = tuple(column.name for column in COLUMNS)
        readers = [Reader(load_index(str(t.folder)), SCHEMA, (), labels=False, carry=names) for t in self._templates]
        self._read_parts = [PartReader(reader, 4_096) for reader in readers]
        self.counts: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []

    def round(self, number: int) -> None:
        """Damages all shards of the folder in one of the record formats, with or without an index, and reads them."""
        template, self._read_part = self._templates[number % 2], self._read_parts[number % 2]
        turn = number // 2 % _TURNS
        has_index = turn > 0
        split = self._folder / "split"
        shutil.rmtree(split, ignore_errors=True)
        shutil.copytree(template.folder, split)
        files, states, kinds = sorted(split.glob("*.tfrecord")), [], []
        for file, data, offsets in zip(files, template.data, template.offsets):
            kind = str(self._rng.choice(["intact", *FLIPS, *CUTS]))
            kind = "emptied" if kind == "removed" and not has_index else kind  # nothing knows of that shard then
            changed, state = damage(self._rng, kind, data, offsets)
            if kind == "cut" and len(changed) in offsets:
                kind = "cut between records"
            file.unlink() if kind == "removed" else file.write_bytes(changed)
            states.append(state)
            kinds.append(kind)
            self.counts["flipped" if kind in FLIPS else "cut" if kind in CUTS else "intact"] += 1
        index_file = split / "index.json"
        if not has_index:
            index_file.unlink()
        elif turn == 1:
            self._damage_index(index_file)
        self._round = f"round {number} ({template.record_format}, {'index' if has_index else 'no index'})"
        self._read_as_default(template, split, files, states, kinds, has_index)
        self._read_sound(template, split, files, states, kinds)

    def _damage_index(self, path: pathlib.Path) -> None:
        data = bytearray(path.read_bytes())
        if self._rng.random() < 0.5:
            data[self._rng.integers(len(data))] ^= 1 << self._rng.integers(8)
        else:
            del data[self._rng.integers(len(data)) :]
        path.write_bytes(bytes(data))
        self.counts["index.json damaged"] += 1

    def _fail(self, what: str) -> None:
        self.failures.append(f"{self._round}: {what}")

    def _are_right(self, index, expected: np.ndarray) -> bool:
        """Whether reading gives the rows of these numbers, in this order and with every value."""
        batches = [(weights.numpy() > 0, columns) for _, _, weights, columns in self._read_part(index)]
        for name, right in self._right.items():
            read = np.concatenate([columns[name].numpy()[real] for real, columns in batches])
            if not np.array_equal(read, right[expected], equal_nan=name == "price"):
                return False
        return True

    def _read_as_default(self, template, split, files, states, kinds, has_index) -> None:
        from data_pipeline.folder import explained_read_errors
        from data_pipeline.index import check_sizes, scan, stored_index
        from hm3_tf.errors import DataError

        try:
            shards = stored_index(str(split)).shards() if has_index else [None] * len(files)
        except DataError as error:
            if "index.json" not in str(error):
                self._fail(f"index.json: {error}")
            return
        for number, (file, state, kind, shard) in enumerate(zip(files, states, kinds, shards)):
            self._on_shard()
            try:
                index = shard or scan([str(file)])
                if shard:
                    check_sizes(index)
                with explained_read_errors(index):
                    kept = np.flatnonzero(state == OK).tolist()
                    right = not index.rows or self._are_right(index, template.rows_of(number, kept))
                undetected = not has_index and kind in ("cut between records", "emptied")
                if not right or not (undetected or (state == OK).all()):
                    self._fail(f"{file.name} ({kind}) was read without an error, right: {right}")
            except DataError as error:
                self.counts["named by an error"] += 1
                placed = kind == "removed" or "byte offset" in str(error)
                if (state == OK).all() or not str(error).startswith(str(file)) or not placed:
                    self._fail(f"{file.name} ({kind}): {error}")

    def _read_sound(self, template, split, files, states, kinds) -> None:
        from data_pipeline.bad_records import BadRecords
        from data_pipeline.salvage import sound_index

        bad = BadRecords(10**9)
        index = sound_index(str(split), SCHEMA, bad)
        named = collections.defaultdict(list)
        for record in bad.records:
            named[record.file].append(record)
        has_index = (split / "index.json").exists() and str(split / "index.json") not in named
        step = BLOCK_ROWS if template.record_format == "row" else 1
        expected = []
        for number, (file, state, kind) in enumerate(zip(files, states, kinds)):
            known = list(range(0, len(state), step)) if has_index else []
            rows = template.rows_of(number, survivors(state, known))
            expected.append(rows)
            lost = [record.rows for record in named[str(file)]]
            silent = not has_index and (kind in ("cut between records", "emptied", "removed"))
            self.counts["rows written"] += ROWS
            self.counts["rows read"] += len(rows)
            self.counts["rows of bad records"] += sum(n or 0 for n in lost)
            if silent:
                self.counts["rows cut off between records, no index"] += ROWS - len(rows)
            elif None in lost:
                self.counts["rows of stretches of unknown length, no index"] += (
                    ROWS - len(rows) - sum(n or 0 for n in lost)
                )
                if has_index:
                    self._fail(f"{file.name} ({kind}): rows of {lost} are known to the index")
            elif sum(lost) + len(rows) != ROWS:
                self._fail(f"{file.name} ({kind}): {len(rows)} rows are there and {lost} lost, of {ROWS}")
            if bool(lost) == bool((state == OK).all()) and not silent:
                self._fail(f"{file.name} ({kind}): named as {named[str(file)]}")
        if not self._are_right(index, np.concatenate(expected)):
            self._fail("other rows came back than those of the sound records, or not as they were written")


def work(results, shards: int, a_folder: int, seed: int) -> None:
    """Sends (counts, failures) of each round until all shards are done, and None between shards; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(pathlib.Path(folder), a_folder, seed, lambda: results.send(None))
        for number in range(-(-shards // a_folder)):
            fuzzer.counts.clear()
            fuzzer.failures.clear()
            fuzzer.round(number)
            results.send((dict(fuzzer.counts), list(fuzzer.failures)))


def run(shards: int, seed: int, a_folder: int = 50) -> tuple[collections.Counter, list[str]]:
    """Returns what was counted, and what went wrong: crashes and hangs too."""
    progress = Progress("fuzz", shards, "shards")
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(theirs, shards, a_folder, seed))
    process.start()
    theirs.close()
    counts, failures = collections.Counter(), []
    try:
        for number in range(-(-shards // a_folder)):
            result = None
            while result is None:
                if not ours.poll(SILENCE_S):
                    return counts, [*failures, f"round {number} hung: nothing was heard for {SILENCE_S} s"]
                result = ours.recv()
            progress.advance(a_folder)
            counts.update(result[0])
            failures += result[1]
    except EOFError:
        process.join()
        failures.append(f"round {number} ended the process, with status {process.exitcode}")
    finally:
        process.kill()
        process.join()
    return counts, failures


def main(_: list[str]) -> None:
    start = time.monotonic()
    counts, failures = run(_SHARDS.value, _SEED.value)
    for name, count in counts.items():
        print(f"{name:<45} {count:>12,}")
    print(f"{'seconds':<45} {time.monotonic() - start:>12,.0f}")
    sys.exit("\n".join(failures[:20]) or None)


if __name__ == "__main__":
    app.run(main)
