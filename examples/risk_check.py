"""Orders count only when a risk check has acknowledged them: two processes share the checking, and one of them is killed."""

import multiprocessing
import os
import tempfile
import time
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event

from ringmain.bus import Batch, Writer
from ringmain.storage import Schema
from ringmain.subscribers import Acknowledged

ORDERS = Schema("orders", {"instrument": "u4", "quantity": "i8", "price": "i8"}, units={"price": "1/100 EUR"})
LIMIT = 100_000_000  # 1/100 EUR


def refuse(batch: Batch) -> None:
    print(f"order {batch.first} cannot be checked: tried {batch.deliveries} times", flush=True)


def check_orders(bus: str, ready: Event, hangs: bool) -> None:
    with Acknowledged(
        f"{bus}/orders", "risk", start="earliest", tries=2, dead_letter=refuse, open_timeout=60
    ) as orders:
        ready.set()
        for batch in orders:  # until the writer has closed and all is settled
            if hangs:
                time.sleep(3600)  # with an order in hand
            for order in batch.copy():
                sequence, value = int(order["sequence"]), int(order["quantity"] * order["price"])
                if value <= 0:
                    orders.nack(sequence)  # makes no sense: let somebody else try
                    continue
                if value > LIMIT:
                    print(f"order {sequence} is too large: {value / 100:,.2f} EUR", flush=True)
                orders.ack(sequence)


def main() -> None:
    bus, spawn = f"risk-{os.getpid()}", multiprocessing.get_context("spawn")

    def start(hangs: bool) -> SpawnProcess:
        ready = spawn.Event()
        checker = spawn.Process(target=check_orders, args=(bus, ready, hangs), daemon=True)
        checker.start()
        ready.wait(60)
        return checker

    with tempfile.TemporaryDirectory() as data_dir:
        with Writer(bus, [ORDERS], data_dir=data_dir) as writer:
            orders = writer["orders"]
            hanging = start(hangs=True)
            first = orders.publish(600519, 100, 182_500)
            try:
                orders.wait(first, acknowledged_by=["risk", "audit"], timeout=0.5)
            except TimeoutError as late:
                print(str(late).replace(str(hanging.pid), "PID"))
            checker = start(hangs=False)
            hanging.kill()
            orders.wait(first, acknowledged_by=["risk"], timeout=60)
            print(f"order {first} is checked: the other process has got it")
            for quantity, price in ((200, 182_500), (100_000, 182_500), (100, 0), (300, 182_600)):
                last = orders.publish(601318, quantity, price)
            orders.wait(last, acknowledged_by=["risk"], timeout=60)
            print(f"orders up to {last} are settled")
        checker.join()
        hanging.join()


if __name__ == "__main__":
    main()
