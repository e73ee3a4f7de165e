"""An understanding model behind an OpenAI-compatible server, asked over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from PIL import Image

from textcraftor.captioning.advice import Advice, short
from textcraftor.captioning.image_to_text import Shown, pictures_of
from textcraftor.captioning.understanding import ask_for_advice, check_asking, seed_of
from textcraftor.config.rules import shown
from textcraftor.errors import UsageError, one_line
from textcraftor.files.pictures import to_rgb
from textcraftor.files.reading import MB

MOST_BYTES = MB  # of a server's answer
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between two attempts
LATER = (408, 429)  # statuses, beside 500 and above, after which the same request may be answered
CORRECT = "correct understander.url, which often ends in /v1, understander.model or the key"
MOST_LIKELY = 20  # tokens that the API tells the probabilities of
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class LaterError(Exception):
    """A server cannot take a request now: why, and its `Retry-After`."""


class Endpoint:
    """A model that is asked by `POST url/chat/completions`, the pictures as PNG in data URLs: its likeliest answer
    first, from the second try on a drawn one. A request that the server cannot take now is sent again later.

    Args:
        url: the API's root, as http://localhost:8000/v1.
        model: its name on the server.
        key_variable: the environment variable that holds the API key; None sends none. The key itself stands in no
            configuration, and no message repeats it.
        box_scale: how the model writes boxes, as of `advice_in`.
        tries: how many answers on a picture are looked at.
        concurrent: requests at a time.
        timeout: seconds that one request may take.
        attempts: how often one request is sent before the server counts as down.
        max_tokens: of an answer.
        request: further fields of each request; None leaves one of ours out, as `temperature` where a model refuses it.

    Raises:
        UsageError: an argument that cannot be meant, or no key in the variable.
    """

    def __init__(
        self,
        url: str | None,
        model: str | None,
        key_variable: str | None = None,
        box_scale: int = 1,
        tries: int = 3,
        concurrent: int = 4,
        timeout: float = 120.0,
        attempts: int = 5,
        max_tokens: int = 1000,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        check_asking(box_scale=box_scale, tries=tries, concurrent=concurrent, attempts=attempts, max_tokens=max_tokens)
        if not timeout > 0:
            raise UsageError(f"understander.timeout={timeout} must be above 0 seconds")
        if not model:
            raise UsageError("understander.model is needed: the model's name on the server")
        self.url, self.name = _checked(url), model
        self.box_scale, self.tries, self.concurrent, self.attempts = box_scale, tries, concurrent, attempts
        self.timeout, self.max_tokens, self.request = timeout, max_tokens, request or {}
        self._key = _key_in(key_variable)

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Advice]:
        """Advice on each picture.

        Raises:
            UsageError: the server is down, refuses, or answers what its API does not promise.
        """
        return ask_for_advice(self.answers, pictures, prompts, self.tries, self.box_scale)

    def answers(self, pictures: Sequence[Shown], questions: Sequence[str], number: int) -> list[str]:
        """An answer to each question, see `understanding.Answering`.

        Raises:
            UsageError: as a call does.
        """
        asked = zip(pictures, questions, strict=True)
        return [self._text_in(one) for one in self._all([self._body(*one, number) for one in asked])]

    def probabilities(
        self, pictures: Sequence[Shown], questions: Sequence[str], words: Sequence[str]
    ) -> list[list[float]]:
        """How likely each answer begins with each word, see `understanding.Answering`; 0 where the word is not among
        the likeliest tokens, of which the API tells 20.

        Raises:
            UsageError: as a call does; or the server does not tell how likely tokens are.
        """
        wanted = {"logprobs": True, "top_logprobs": MOST_LIKELY, "max_tokens": 1}
        asked = zip(pictures, questions, strict=True)
        contents = self._all([self._body(*one, 0, wanted) for one in asked])
        return [[_likelihood(one, word) for word in words] for one in map(self._likeliest_in, contents)]

    def _all(self, bodies: Sequence[bytes]) -> list[str]:
        """The answers to requests, in a thread of its own: a notebook's has an event loop already."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._sent(bodies)).result()

    async def _sent(self, bodies: Sequence[bytes]) -> list[str]:
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        turns = asyncio.Semaphore(self.concurrent)
        async with httpx.AsyncClient(headers=headers, timeout=self.timeout) as client:

            async def answer(body: bytes) -> str:
                async with turns:
                    return await self._answer(client, body)

            return await asyncio.gather(*map(answer, bodies))

    def _body(self, shown: Shown, question: str, number: int, wanted: Mapping[str, Any] | None = None) -> bytes:
        """One request: a message of pictures and a question.

        Args:
            wanted: fields that come before all others.
        """
        pictures = [{"type": "image_url", "image_url": {"url": _address(one)}} for one in pictures_of(shown)]
        content = [*pictures, {"type": "text", "text": question}]
        fields = {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": 1 if number else 0,
            "seed": seed_of(shown, question, number),
        }
        sent = {**fields, **self.request, **(wanted or {})}
        return json.dumps({key: one for key, one in sent.items() if one is not None}).encode()

    async def _answer(self, client: httpx.AsyncClient, body: bytes) -> str:
        """The content of the answer to a request, which is sent again while the server cannot take it."""
        for attempt in range(self.attempts):
            try:
                return await self._send(client, body)
            except LaterError as error:
                why, later = error.args
            if attempt + 1 < self.attempts:
                await asyncio.sleep(wait_after(attempt, later))
        raise UsageError(
            f"{self.url} does not answer, asked {self.attempts} times ({why}): start the server, or correct its address"
        )

    async def _send(self, client: httpx.AsyncClient, body: bytes) -> str:
        """The content of the answer to one request.

        Raises:
            LaterError: the same request may be answered later.
            UsageError: the server refuses it, or answers too much.
        """
        content = b""
        try:
            async with asyncio.timeout(self.timeout), client.stream("POST", self.url, content=body) as response:
                async for part in response.aiter_raw():
                    content += part
                    if len(content) > MOST_BYTES:
                        raise UsageError(f"{self.url} answers with more than {MOST_BYTES:,} bytes: {CORRECT}")
        except (httpx.TransportError, TimeoutError) as error:
            raise LaterError(short(str(error)) or f"no answer within {self.timeout:g} seconds", "") from error
        text, status = self._without_key(content), response.status_code
        if status == httpx.codes.OK:
            return text
        why = short(f"{status} {httpx.codes.get_reason_phrase(status)} {_complaint(text)}")
        if status in LATER or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise LaterError(why, response.headers.get("Retry-After", ""))
        raise UsageError(f"{self.url} refuses ({why}): {CORRECT}")

    def _without_key(self, content: bytes) -> str:
        """What a server sent, which may repeat the key."""
        text = content.decode(errors="replace")
        return text.replace(self._key, "***") if self._key else text

    def _text_in(self, content: str) -> str:
        """What the model says, in the form that the API promises; empty where it says that it refuses."""
        match _json(content):
            case {"choices": [{"message": {"content": str(text)}}, *_]}:
                return text
            case {"choices": [{"message": {"content": None}}, *_]}:
                return ""
        raise UsageError(f"{self.url} does not answer as an OpenAI-compatible server ({short(content)}): {CORRECT}")

    def _likeliest_in(self, content: str) -> list[dict[str, Any]]:
        """The likeliest first tokens of an answer, each {token, logprob}."""
        match _json(content):
            case {"choices": [{"logprobs": {"content": [{"top_logprobs": [*tokens]}, *_]}}, *_]}:
                if all(isinstance(one, dict) and isinstance(one.get("logprob"), int | float) for one in tokens):
                    return tokens
            case {"choices": [{"message": _}, *_]}:
                raise UsageError(
                    f"{self.url} does not tell how likely tokens are (logprobs), which this judge needs: ask a server "
                    "that does, as vLLM, or choose another judge.protocol"
                )
        self._text_in(content)
        raise UsageError(f"{self.url} tells of tokens otherwise than an OpenAI-compatible server: {CORRECT}")


def _address(picture: Image.Image) -> str:
    """A picture as a data URL."""
    packed = io.BytesIO()
    to_rgb(picture).save(packed, "PNG")
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def _likelihood(tokens: Sequence[Mapping[str, Any]], word: str) -> float:
    """Of tokens with their log probabilities, how likely is the word, a space before it or not."""
    return sum(math.exp(min(one["logprob"], 0.0)) for one in tokens if str(one.get("token")).strip() == word)


def _complaint(content: str) -> str:
    """What a server says of its refusal; nothing where that is not in the API's form."""
    match _json(content):
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"message": str(text)}:
            return text
    return ""


def _json(content: str) -> Any:
    """What a text in JSON holds; None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def wait_after(attempt: int, later: str) -> float:
    """Seconds between an attempt, counted from 0, and the next: what `Retry-After` says, else 1, 2, 4 ..."""
    return min(float(later) if later.isdecimal() else FIRST_WAIT * 2.0**attempt, LONGEST_WAIT)


def _checked(url: str | None) -> str:
    """The address that requests go to.

    Raises:
        UsageError: none, or one that holds a password.
    """
    try:
        parts = httpx.URL(url or "")
    except (httpx.InvalidURL, TypeError) as error:
        raise UsageError(
            f"understander.url={url} is no address ({one_line(error)}): as http://localhost:8000/v1"
        ) from error
    if parts.userinfo:
        raise UsageError("understander.url holds a user or password: give the key by understander.key_variable")
    if parts.scheme not in ("http", "https") or not parts.host or parts.query or parts.fragment:
        raise UsageError(f"understander.url={shown(url)} must be an API's root, as http://localhost:8000/v1")
    return f"{str(parts).rstrip('/')}/chat/completions"


def _key_in(variable: str | None) -> str | None:
    """The API key that an environment variable holds."""
    if variable is None:
        return None
    if not VARIABLE.fullmatch(variable):
        raise UsageError(
            "understander.key_variable must name an environment variable, as OPENAI_API_KEY, not hold a key"
        )
    key = os.environ.get(variable, "").strip()
    if not key or not re.fullmatch(r"[!-~]+", key):
        state = "holds characters that no key has" if key else "is not set"
        raise UsageError(f"understander.key_variable={variable}: this environment variable {state}: put the key there")
    return key
