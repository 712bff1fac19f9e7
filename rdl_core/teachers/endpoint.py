"""A listwise teacher behind a server that speaks OpenAI's chat completions: OpenAI, vLLM, others.

Several requests are in flight at a time, and no more a minute than the server allows. What may pass
(429, 5xx, time-outs, broken connections, answers that are none) is tried again, later each time and
not for ever; what will not pass (a wrong key, an unknown model) stops at once. Answers on their way
by then are still waited for and handed out, since they are paid for.

The key is read from the environment and is in no configuration, name, log line or error.

>>> EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="tiny").name
'tiny, temperature=0.0, max_words=300, options={}'
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import openai

from rdl_core.teachers.answers import Answer, Window, listwise_prompt

__all__ = ["Endpoint", "EndpointConfig", "EndpointError"]

_OURS = {"messages", "model", "n", "stream"}
_PASSING = {200, 408, 409, 425, 429}  # 200: an answer that is none; 5xx pass, too
_RETRY_TEMPERATURE = 0.7  # greedy decoding would only repeat an unusable answer
_NO_CREDIT = "insufficient_quota"  # OpenAI's code for a 429 that waiting does not cure
_TOO_MUCH = "use a smaller window or fewer max_words, leave out options the model does not take"
_log = logging.getLogger(__name__)


class EndpointError(OSError):
    """A window that the server did not answer, and what to do; run it again to go on.

    >>> isinstance(EndpointError("no answer"), OSError)
    True
    """


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Which model, how it is asked, and what it costs.

    >>> own = {"input_usd": 0.5, "output_usd": 2.0}
    >>> EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="m", **own).usd(10**6, 10**5)
    0.7
    """

    base_url: str
    """Address of the server; most end in ``/v1``."""
    model: str
    """The model's name there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset: asked without one."""
    temperature: float | None = 0.0
    """Of first answers; what is asked again has 0.7 at least. None sends none."""
    max_words: int = 300
    """Words of a passage that are shown."""
    options: dict[str, object] = field(default_factory=dict)
    """Further fields of each request, such as ``max_tokens`` or ``reasoning_effort``."""
    max_in_flight: int = 8
    """Requests at the same time."""
    requests_per_minute: float | None = None
    """Most requests that start in a minute, evenly spaced; None: no limit."""
    timeout_s: float = 120.0
    """Seconds without a byte from the server after which a request has failed."""
    max_tries: int = 10
    """Requests for one window, the first included, before giving up."""
    first_wait_s: float = 1.0
    """Wait before the second try; doubled each time, then cut by up to half at random."""
    longest_wait_s: float = 60.0
    """Longest wait. A server that asks for more (Retry-After) stops the run."""
    input_usd: float | None = None
    """Dollars for a million tokens of prompts."""
    output_usd: float | None = None
    """Dollars for a million tokens written."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(
                f"expected base_url as http://host:port/v1, got {self.base_url!r}: name the server"
            )
        if url.username or url.password or url.query:
            raise ValueError(
                f"expected base_url without user, password or query, got one for {url.hostname}: "
                f"put the key into the environment variable {self.key_variable}"
            )
        for name in ("max_words", "max_in_flight", "max_tries", "timeout_s", "requests_per_minute"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"expected {name} above 0, got {value}: leave it out or raise it")
        if taken := _OURS & set(self.options):
            raise ValueError(
                f"expected options other than {sorted(_OURS)}, got {sorted(taken)}: leave them out"
            )

    @property
    def name(self) -> str:
        """Model and settings that change answers; not the address, which may move."""
        options = dict(sorted(self.options.items()))
        settings = f"temperature={self.temperature}, max_words={self.max_words}, options={options}"
        return f"{self.model}, {settings}"

    def open(self) -> Endpoint:
        """The backend; nothing is asked yet."""
        return Endpoint(self)

    def usd(self, input_tokens: int, output_tokens: int) -> float | None:
        """What so many tokens cost; None without prices."""
        if self.input_usd is None or self.output_usd is None:
            return None
        return round((input_tokens * self.input_usd + output_tokens * self.output_usd) / 1e6, 6)


class Endpoint:
    """A backend for `rdl_core.teachers.listwise.rank_lists`.

    >>> config = EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="tiny")
    >>> list(Endpoint(config).ask([]))
    []
    """

    can_retry = True

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._key = os.environ.get(config.key_variable, "").strip()
        if not self._key:
            _log.info("%s is not set: %s is asked without", config.key_variable, config.base_url)
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=config.base_url, timeout=config.timeout_s,
            max_retries=0,
        )  # fmt: skip
        self._pace = _Pace(config.requests_per_minute)

    def ask(self, windows: Sequence[Window]) -> Iterator[tuple[int, Answer]]:
        """Answer windows as their answers come.

        Raises:
            EndpointError: The server does not answer; raised once all that was on its way is out.
        """
        stop, failure = threading.Event(), None
        pool = ThreadPoolExecutor(self.config.max_in_flight)
        try:
            numbers = {pool.submit(self._answer, one, stop): i for i, one in enumerate(windows)}
            for future in as_completed(numbers):
                if error := future.exception():
                    failure = failure or error
                elif answer := future.result():
                    yield numbers[future], answer
        finally:
            stop.set()
            pool.shutdown(wait=False)
        if failure:
            raise failure

    def _answer(self, window: Window, stop: threading.Event) -> Answer | None:
        """The answer; None if told to stop before. An error tells all others to stop."""
        try:
            return self._tried(window, stop)
        except Exception:
            stop.set()  # here, or this thread would begin another window before it is read
            raise

    def _tried(self, window: Window, stop: threading.Event) -> Answer | None:
        for n_calls in range(1, self.config.max_tries + 1):
            if stop.wait(self._pace.turn()):
                return None
            try:
                return self._request(window, n_calls)
            except (openai.APIError, json.JSONDecodeError) as error:
                wait_s = self._wait_s(window, error, n_calls)
            if stop.wait(wait_s):
                return None
        return None

    def _request(self, window: Window, n_calls: int) -> Answer:
        prompt = listwise_prompt(window.query, window.passages, max_words=self.config.max_words)
        options = {}
        if (temperature := self.config.temperature) is not None:
            least = _RETRY_TEMPERATURE if window.attempt else 0.0
            options["temperature"] = max(temperature, least)
        completion = self._client.chat.completions.create(
            model=self.config.model, messages=[{"role": "user", "content": prompt}],
            extra_body=options | self.config.options,
        )  # fmt: skip
        choices = getattr(completion, "choices", None)
        message = getattr(choices[0], "message", None) if choices else None
        if message is None:  # an error or a page, sent with status 200
            raise json.JSONDecodeError("no chat completion", str(completion), 0)
        usage = getattr(completion, "usage", None)
        return Answer(
            text=message.content or "", n_calls=n_calls,
            input_tokens=getattr(usage, "prompt_tokens", None),
            output_tokens=getattr(usage, "completion_tokens", None),
        )  # fmt: skip

    def _wait_s(self, window: Window, error: Exception, n_calls: int) -> float:
        """How long to wait before the next try, if there is to be one."""
        config, said_s = self.config, _retry_after_s(error)
        remedy = self._remedy(error)
        if remedy is None and n_calls == config.max_tries:
            remedy = f"{n_calls} tries: see that the server runs, then run this again to go on"
        if remedy is None and said_s > config.longest_wait_s:
            remedy = f"it asks to wait {said_s:.0f} s: run this again then, or raise longest_wait_s"
        if remedy:
            place = f"query {window.query_id!r}, pass {window.pass_number}, start {window.start}"
            raise EndpointError(
                f"{config.base_url}: expected an answer for {place}; got {self._said(error)}: "
                f"{remedy}"
            ) from None  # the error may quote the key
        backoff_s = min(config.first_wait_s * 2 ** (n_calls - 1), config.longest_wait_s)
        wait_s = max(said_s, backoff_s * random.uniform(0.5, 1.0))
        self._pace.hold(said_s)
        _log.warning(
            "%s: %s; try %d of %d in %.1f s", config.base_url, self._said(error), n_calls + 1,
            config.max_tries, wait_s,
        )  # fmt: skip
        return wait_s

    def _remedy(self, error: Exception) -> str | None:
        """What to do about an error that will not pass; None if it may."""
        status = getattr(error, "status_code", None)
        if getattr(error, "code", None) == _NO_CREDIT:
            return "the account has no credit left: add some, then run this again to go on"
        if status is None or status in _PASSING or status >= 500:
            return None
        config = self.config
        remedies = {
            401: f"put a key that this server takes into {config.key_variable}",
            403: f"the key in {config.key_variable} may not do this: use another key or model",
            404: f"check base_url, most end in /v1, and the model, {config.model!r}",
        } | dict.fromkeys((400, 413, 422), _TOO_MUCH)
        return remedies.get(status, "see what the server says about this status")

    def _said(self, error: Exception) -> str:
        """The error and its cause on one line, without the key."""
        cause = error.__cause__
        text = f"{error} ({type(cause).__name__}: {cause})" if cause else str(error)
        if isinstance(error, json.JSONDecodeError):
            text = f"no chat completion, {error.doc[:200]!r}"
        text = " ".join(text.split())
        return text.replace(self._key, "***") if self._key else text


class _Pace:
    """When the next request may start: as the rate allows, and not before a server said."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap_s = 60.0 / per_minute if per_minute else 0.0
        self._next_s = 0.0
        self._lock = threading.Lock()

    def turn(self) -> float:
        """Take the next turn; gives the seconds until it."""
        with self._lock:
            now_s = time.monotonic()
            start_s = max(now_s, self._next_s)
            self._next_s = start_s + self._gap_s
            return start_s - now_s

    def hold(self, seconds: float) -> None:
        """Let no turn taken from now on begin sooner."""
        with self._lock:
            self._next_s = max(self._next_s, time.monotonic() + seconds)


def _retry_after_s(error: Exception) -> float:
    """Seconds that the server asks to wait, in its header's two forms; 0 if it does not."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    said = headers.get("retry-after", "")
    try:
        return max(0.0, float(said))  # in this order, NaN gives 0
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return 0.0
