"""The API over a coordinator whose loop is the test's own thread."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from httpx import ASGITransport, AsyncClient, Response

from coordinator.calls import Calls
from coordinator.config import Rounds
from coordinator.http import Desk
from coordinator.http._app import make_app
from coordinator.http._guard import Bucket
from coordinator.status import take_status
from tests.support.loopback import Loopback

TOKEN = "t" * 64
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
ROUNDS = Rounds(count=3, cohort=2, quorum=1.0, deadline_s=60.0)


class Api:
    """A loopback federation, and a client of its API.

    Args:
        directory: for the coordinator's state.
        rounds: the file's `[rounds]`.
        count: devices.
        call_s_max: how long a write waits for the loop.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rounds: Rounds = ROUNDS,
        count: int = 3,
        call_s_max: float = 10.0,
    ) -> None:
        self.loopback = Loopback(directory, count=count, rounds=rounds)
        self.link_up = True
        self.stuck = False
        self._rung = threading.Event()
        self.calls = Calls(self._rung.set)
        self.glance()
        self.desk = Desk(
            state_dir=directory / "coordinator",
            config=self.loopback.config,
            public_key=self.loopback.coordinator.public_key,
            broker="mqtt://127.0.0.1:1883",
            status=lambda: self.status,
            calls=self.calls,
            coordinator=self.loopback.coordinator,
            call_s_max=call_s_max,
        )
        app: Any = make_app(self.desk, TOKEN, hosts=LOOPBACK_HOSTS, bucket=Bucket(1e9, 1e9))
        self._transport = ASGITransport(app, raise_app_exceptions=False)

    async def _ask(self, method: str, path: str, **more: Any) -> Response:
        url = "http://127.0.0.1:8080"
        async with AsyncClient(transport=self._transport, base_url=url) as client:
            return await client.request(method, path, **more)

    def glance(self) -> None:
        """The loop looks around."""
        self.status = take_status(
            self.loopback.coordinator,
            link_up=self.link_up,
            now_s=self.loopback.now_s,
            steady_s=time.monotonic(),
        )

    def play(self) -> "Api":
        """All rounds, to their end."""
        self.loopback.start()
        self.loopback.play()
        self.loopback.coordinator.stop()
        self.glance()
        return self

    def ask(self, method: str, path: str, *, token: str = "", **more: Any) -> Response:
        """One request, while the loop turns, unless it is stuck."""
        headers = dict(more.pop("headers", {}))
        if token:
            headers["authorization"] = f"Bearer {token}"
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(asyncio.run, self._ask(method, path, headers=headers, **more))
            while not asked.done():
                self._rung.wait(0.005)
                self._rung.clear()
                if not self.stuck:
                    self.calls.run(self.loopback.now_s)
            return asked.result()

    def get(self, path: str, **more: Any) -> Any:
        """The JSON of a read that succeeds."""
        answer = self.ask("GET", path, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, json: Any = None) -> Response:
        """A write with the token."""
        more = {} if json is None else {"json": json}
        return self.ask("POST", path, token=TOKEN, **more)

    def pages(self, path: str, limit: int) -> list[Any]:
        """Every item of a list, a page at a time."""
        items: list[Any] = []
        after = ""
        while True:
            mark = "&" if "?" in path else "?"
            page = self.get(f"{path}{mark}limit={limit}{after}")
            assert len(page["items"]) <= limit
            items += page["items"]
            if page["next"] is None:
                return items
            after = f"&after={page['next']}"
