"""A store: rows kept by key. Put, look up, scan, look back, and read from another process while this one writes."""

import multiprocessing
import tempfile

import numpy as np
from ringmain.storage import Schema, Store

QUOTES = Schema(
    "quotes",
    {"instrument": "u4", "venue": "S4", "bid": "i8", "ask": "i8"},
    key=("instrument", "venue"),
    units={"bid": "1/10,000 EUR", "ask": "1/10,000 EUR"},
)


def show(when: str, row: np.void | None) -> None:
    print(f"{when}:", "no row" if row is None else f"bid {row['bid']}, ask {row['ask']}, sequence {row['sequence']}")


def read_meanwhile(directory: str) -> None:
    with Store.open(directory, read_only=True) as store:  # also when nobody writes any more
        asks = np.concatenate([rows["ask"] for rows in store["quotes"].scan(first=100, last=100)])
    print(f"another process: instrument 100 is offered at {asks.tolist()}")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Store(directory, [QUOTES]) as store:
        quotes = store["quotes"]
        quotes.put(100, b"XETR", 182_400, 182_500)  # the fields in their order, or by name
        rows = np.zeros(50, QUOTES.payload_dtype)
        rows["instrument"], rows["venue"] = np.arange(101, 151), b"PAR"
        last = quotes.put_batch(rows)  # all of them or none
        store.sync()  # now a power cut loses nothing either
        show("at first", quotes.get(100, b"XETR"))

        with quotes.at(last) as view:  # stays as it is, whatever is put
            quotes.put(100, b"XETR", bid=182_600, ask=182_700)
            quotes.delete(101, b"PAR")
            show("now", quotes.get(100, b"XETR"))
            show("as of then", view.get(100, b"XETR"))
            show("deleted", quotes.get(101, b"PAR"))

        keys = np.array([(101, b"PAR"), (150, b"PAR")], [("instrument", "u4"), ("venue", "S4")])
        _, found = quotes.get_many(keys)
        print(f"of two keys, found: {found.tolist()}")
        print(f"from instrument 140 on: {sum(len(rows) for rows in quotes.scan(first=140))} rows")

        reader = multiprocessing.get_context("spawn").Process(target=read_meanwhile, args=(directory,))
        reader.start()
        reader.join()


if __name__ == "__main__":
    main()
