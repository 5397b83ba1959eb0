"""taskiq on Redis streams: `load` adds TASKS tasks, `run` works them off, IN_FLIGHT at a time, and prints the seconds
that took. Nothing is forwarded."""

import asyncio
import os
import sys
import time

from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

URL, TASKS, IN_FLIGHT = os.environ["REDIS_URL"], int(os.environ["TASKS"]), int(os.environ["IN_FLIGHT"])
broker = RedisStreamBroker(url=URL, queue_name="s", consumer_group_name="consumer", xread_count=IN_FLIGHT)
done = asyncio.Event()
count = 0


@broker.task
async def work(query_id: str, response_id: str, workflow: str, log_level: str, otel: str, metadata: str) -> None:
    global count
    count += 1
    if count == TASKS:
        done.set()


async def load():
    await broker.startup()
    otel = '{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}'
    for n in range(TASKS):
        await work.kiq(f"{n:08x}", "r", '[{"id":"s"},{"id":"next"}]', "20", otel, "{}")
    await broker.shutdown()


async def run():
    broker.is_worker_process = True
    started = time.perf_counter()
    receiver = asyncio.create_task(
        run_receiver_task(broker, max_async_tasks=IN_FLIGHT, max_prefetch=IN_FLIGHT, run_startup=True)
    )
    await done.wait()
    print(time.perf_counter() - started, flush=True)
    receiver.cancel()
    os._exit(0)


asyncio.run(load() if sys.argv[1] == "load" else run())
