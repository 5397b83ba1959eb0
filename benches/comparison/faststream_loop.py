"""FastStream on Redis streams: `load` adds TASKS entries, `run` takes each, IN_FLIGHT at a time, publishes it to the
next stream, acknowledges it, and prints the seconds that took."""

import asyncio
import os
import sys
import time

import redis
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub

URL, TASKS, IN_FLIGHT = os.environ["REDIS_URL"], int(os.environ["TASKS"]), int(os.environ["IN_FLIGHT"])
TASK = {
    "query_id": "0123abcd", "response_id": "r", "workflow": '[{"id":"s"},{"id":"next"}]', "log_level": "20",
    "otel": '{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}', "metadata": "{}",
}
broker = RedisBroker(URL, logger=None)
app = FastStream(broker, logger=None)
state = {"done": 0, "started": 0.0}


@broker.subscriber(
    stream=StreamSub("s", group="consumer", consumer="c", max_records=IN_FLIGHT, polling_interval=100),
    max_workers=IN_FLIGHT,
)
async def work(task: dict):
    await broker.publish(task, stream="next")
    state["done"] += 1
    if state["done"] == TASKS:
        print(time.perf_counter() - state["started"], flush=True)
        app.exit()


async def load():
    async with broker:
        for _ in range(TASKS):
            await broker.publish(TASK, stream="s")
    redis.Redis.from_url(URL).xgroup_create("s", "consumer", "0", mkstream=True)


async def run():
    state["started"] = time.perf_counter()
    await app.run()


asyncio.run(load() if sys.argv[1] == "load" else run())
