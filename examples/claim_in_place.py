"""Claim slots of the ring and fill them in place: what is computed there is never copied, and may be given up."""

import os

import numpy as np
from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.subscribers import RealTime

CURVE = Schema("curve", {"x": "f8", "y": "f8"})


def main() -> None:
    with Writer(f"claim-{os.getpid()}", [CURVE]) as writer, RealTime(f"{writer.bus}/curve") as reader:
        curve = writer["curve"]

        with curve.claim(4) as rows:  # zeroed, writable, invisible to readers until the block ends
            rows["x"] = np.linspace(0.0, 1.0, 4)
            np.square(rows["x"], out=rows["y"])
            print(f"before the commit a reader sees {reader.poll()}")

        claim = curve.claim(100)  # or without `with`: room for as many as there may be
        claim.rows["y"][:2] = 5.0
        print(f"committed 2 of 100, the last is sequence {claim.commit(2)}")

        try:
            with curve.claim(10) as rows:
                rows["y"] = 7.0
                raise ArithmeticError("this curve is no good")
        except ArithmeticError as error:
            print(f"aborted 10: {error}")

        batch = reader.take(timeout=1.0)
        assert batch is not None
        print(f"sequences {batch.rows['sequence'].tolist()}, y {batch.rows['y'].round(2).tolist()}")
        batch.validate()


if __name__ == "__main__":
    main()
