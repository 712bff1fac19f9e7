"""A listwise teacher behind a server that speaks OpenAI's chat completions: OpenAI, vLLM, others.

What may pass (429, 5xx, time-outs, broken connections, status 200 without a completion) is tried again,
later each time. What will not (a wrong key, an unknown model, no credit) stops the run; answers on
their way are still given. The key comes from the environment and is never shown.
"""

import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from itertools import count

import openai

from rdl_core.config import EndpointConfig
from rdl_core.teachers.answers import Answer, Window

__all__ = ["Endpoint", "EndpointError"]

_FILTERED = re.compile(r"content[ _](filter|policy|management)|data_inspection|moderation", re.I)
_HELD_BACK = "held back by a content filter"
_CUT_OFF = "cut off at the longest answer: allow more tokens (--options max_tokens=...)"
_log = logging.getLogger(__name__)


class EndpointError(OSError):
    """A window that the server did not answer, and what to do."""


class Endpoint:
    """A backend for `rdl_core.teachers.listwise.rank_lists`."""

    can_retry = True

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._key = os.environ.get(config.key_variable, "").strip()
        if not self._key:
            _log.info("%s is not set: asking %s without a key", config.key_variable, config.base_url)
        # openai's own retries cannot be interrupted and ignore longest_wait_s, per_minute, a 429
        # without credit, and a 200 without a completion.
        own = {"api_key": self._key or "none", "timeout": config.timeout_s, "max_retries": 0}
        self._client = openai.OpenAI(base_url=config.base_url, **own)
        self._lock, self._next_start_s = threading.Lock(), 0.0

    def ask(self, windows: Sequence[Window]) -> Iterator[tuple[int, Answer]]:
        """Answer windows as their answers come; EndpointError once all on their way are handed out."""
        stop, failure = threading.Event(), None
        pool = ThreadPoolExecutor(self.config.in_flight)
        try:
            numbers = {pool.submit(self._answer, window, stop): i for i, window in enumerate(windows)}
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
        """The answer; None if another thread stopped the run. An error stops all others."""
        try:
            for n_calls in count(1):
                with self._lock:  # take the next turn that per_minute allows
                    start_s = max(now_s := time.monotonic(), self._next_start_s)
                    self._next_start_s = start_s + 60.0 / (self.config.per_minute or float("inf"))
                if stop.wait(start_s - now_s):
                    return None
                try:
                    return self._request(window, n_calls)
                except openai.APIError as error:
                    told = f"{getattr(error, 'code', None)} {error}"
                    if getattr(error, "status_code", None) == 400 and _FILTERED.search(told):
                        return Answer(text="", why=_HELD_BACK, n_calls=n_calls)
                    stop.wait(self._wait_s(window, error, n_calls))
        except Exception:
            stop.set()  # here, or this thread would begin another window before the error is read
            raise

    def _request(self, window: Window, n_calls: int) -> Answer:
        prompt = window.prompt(max_words=self.config.max_words)
        body, temperature = self.config.options, self.config.temperature
        if temperature is not None and temperature >= 0:  # greedily, a retry would say the same again
            body = {"temperature": max(temperature, 0.7 if window.attempt else 0.0)} | body
        response = self._client.chat.completions.with_raw_response.create(
            model=self.config.model, messages=[{"role": "user", "content": prompt}], extra_body=body
        ).http_response
        try:
            completion = response.json()
            choice, usage = completion["choices"][0], completion.get("usage") or {}
            message, text = choice["message"], choice["message"].get("content") or ""
            if isinstance(text, list):
                text = "".join(x.get("text") or "" for x in text if x.get("type") == "text")
            why = {"content_filter": _HELD_BACK, "length": _CUT_OFF}.get(choice.get("finish_reason"))
            if refusal := message.get("refusal"):
                why = f"refused: {refusal}"
            elif not why and not text.strip():  # thoughts are under vLLM's name, or others'
                thoughts = message.get("reasoning_content") or message.get("reasoning")
                why = "thoughts alone: turn them off, or allow more tokens" if thoughts else "empty"
            return Answer(
                text=text, why=why and " ".join(why.split())[:200], n_calls=n_calls,
                input_tokens=usage.get("prompt_tokens"), output_tokens=usage.get("completion_tokens"),
            )  # fmt: skip
        except (ValueError, LookupError, TypeError, AttributeError):  # an error or a page, status 200
            told = f"no completion: {response.text}"
            raise openai.APIResponseValidationError(response, None, message=told) from None

    def _wait_s(self, window: Window, error: Exception, n_calls: int) -> float:
        """Seconds until the next try; EndpointError, which says what to do, if there is to be none."""
        config, asked_s, remedy = self.config, 0.0, None
        with suppress(AttributeError, KeyError, ValueError):  # no response, no header, no number
            asked_s = max(0.0, float(error.response.headers["retry-after"]))
        status = getattr(error, "status_code", 200)  # 200: no completion
        if getattr(error, "code", None) == "insufficient_quota":  # a 429 that waiting does not cure
            remedy = "the account has no credit left: add some, then run this again to go on"
        elif status < 500 and status not in (200, 408, 409, 425, 429):
            other = "see what it says; a smaller --window-size or --max-words may help"
            if "temperature" in str(error):
                other = "this model takes no temperature: send none (--temperature -1)"
            remedy = {
                401: f"put a key that this server takes into {config.key_variable}",
                403: f"the key in {config.key_variable} may not do this: use another key or model",
                404: f"check base_url, most end in /v1, and the model, {config.model!r}",
            }.get(status, other)
        elif n_calls == config.max_tries:
            remedy = f"{n_calls} tries: see that the server runs, then run this again to go on"
        elif asked_s > config.longest_wait_s:
            remedy = f"it asks to wait {asked_s:.0f} s: run this again then, or raise longest_wait_s"
        text = f"{error} ({error.__cause__!r})" if error.__cause__ else str(error)
        text = " ".join((text.replace(self._key, "***") if self._key else text).split())[:300]
        if remedy:
            place = f"query {window.query_id!r}, pass {window.pass_number}, start {window.start}"
            raise EndpointError(f"{config.base_url}: no answer for {place}: {text}: {remedy}") from None
        backoff_s = min(2.0 ** min(n_calls - 2, 20), config.longest_wait_s)
        wait_s = max(asked_s, backoff_s * random.uniform(0.5, 1.0))
        with self._lock:  # no window is asked before the time that the server named
            self._next_start_s = max(self._next_start_s, time.monotonic() + asked_s)
        _log.warning("%s: %s; try %d in %.1f s", config.base_url, text, n_calls + 1, wait_s)
        return wait_s
