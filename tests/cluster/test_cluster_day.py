"""The exchange day published through a cluster's leader, which is killed three times and hands over once: the book is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sse_day
from exchange_day import TOPICS, rows_of
from sse_day import load_day
from support.children import Children
from support.days import Following, check_book
from support.logs import wait_until

pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
from support.clusters import HOSTS, NODES, TIMEOUT_S, cluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]
SECONDS = 6.0
DAY_TOPICS = "".join(f"topics.{topic} = {{{{}}}}\n" for topic in TOPICS)

PUBLISH = """if True:
    sys.path.insert(0, examples)
    from pathlib import Path
    from sse_day import load_day
    from support.cluster_children import publish_exactly
    publish_exactly(getattr(load_day(Path(root)), topic), topic, buses, seconds)
"""


def test_the_book_is_found_on_every_host_though_the_leader_is_killed_three_times_and_hands_over_once(
    data_root, tmp_path, bus_name
):
    counts = {topic: len(rows) for topic, rows in rows_of(load_day(data_root)).items()}
    with (
        cluster(tmp_path, bus_name, seed=1, topics=DAY_TOPICS) as running,
        running.watch() as watch,
        Children() as children,
    ):
        publishers = [children.start() for _ in TOPICS]
        wait_until(lambda: all(running.all_open(topic) for topic in TOPICS), TIMEOUT_S)
        followings = [Following(bus, counts) for bus in running.buses.values()]
        wait_until(lambda: watch.leader != "", TIMEOUT_S)

        def until(condition: Callable[[], bool]) -> None:
            """Read on meanwhile."""

            def reached() -> bool:
                for following in followings:
                    following.read()
                return condition()

            wait_until(reached, TIMEOUT_S)

        for topic, publisher in zip(TOPICS, publishers, strict=True):
            publisher.begin(
                PUBLISH,
                examples=str(Path(sse_day.__file__).parent),
                root=str(data_root),
                topic=topic,
                buses=running.buses,
                seconds=SECONDS,
            )
        for fifths in (1, 2, 3, 4):
            part = counts["orders"] * fifths // 5
            until(lambda part=part: watch.ends().get("orders", 0) >= part)
            epoch = watch.epoch
            if fifths == 3:
                watch.switch_over()
            else:
                running.kill([running.nodes[NODES.index(watch.leader)]])
            until(lambda epoch=epoch: watch.epoch > epoch)
            running.mend()
        until(lambda: all(publisher.has_answered() for publisher in publishers))
        for publisher in publishers:
            publisher.settle()
        for following in followings:
            following.read_to_the_end()
        assert running.close() == [0] * len(NODES)
    for host in HOSTS[1:]:
        for topic in TOPICS:
            assert (followings[host].rows[topic] == followings[0].rows[topic]).all()
    check_book(followings[0].rows, counts)
