"""The backend gemini of 03_synthesize.py, through google-generativeai 0.8.6 (REST).

That is the package of the paper's time, and out of support: everything that touches it is in
`make_call`. What a call raises becomes `Trouble`, and `ask_patiently` decides whether and when it
is tried again.
"""

import os
import random
import re
import time
import warnings
from email.utils import parsedate_to_datetime

from steps.synthesize.llm.jobs import Answer, NoAnswer, Refused, Stop

LONGEST_WAIT = 300  # s; a server that asks for more means a quota, not a rush
BACK_OFF = 60       # s, the longest wait between two tries when the server names none
# Client errors that another try may mend, as it may 5xx and what has no code (timeouts).
PASSING = (408, 409, 425, 429, 499)
# A dict, since of a TypedDict the package forgets which fields are required.
SCHEMA = {"type": "array", "items": {
    "type": "object", "required": ["role", "content"], "properties": {
        "role": {"type": "string", "format": "enum", "enum": ["user", "music", "assistant"]},
        "content": {"type": "string"}, "rejected": {"type": "boolean"}}}}


class Trouble(Exception):
    """A call that failed."""

    def __init__(self, code, message, delay=None):
        super().__init__(f"{code} {message}" if code else message)
        self.code = code    # HTTP status, None for timeouts and lost connections
        self.delay = delay  # seconds that the server asks to wait, or None


def read_key():
    """The API key from GEMINI_API_KEY or GOOGLE_API_KEY. Raises SystemExit: there is none."""
    key = os.environ.get("GEMINI_API_KEY") or os.environ.get("GOOGLE_API_KEY") or ""
    key = key.strip()  # files leave line ends behind it
    if not key:
        raise SystemExit("gemini needs an API key: export GEMINI_API_KEY=... (or GOOGLE_API_KEY)")
    if not re.fullmatch("[!-~]+", key):  # requests would print it in its complaint
        raise SystemExit("the API key in the environment has a blank, a line break or a letter "
                         "that is not ASCII in it; copy it once more")
    return key


def server_delay(details, headers):
    """Seconds that a refusal asks to wait; None if it does not say.

    details: list or None, may hold {"retryDelay": "34.5s"}
    headers: mapping or None, may hold Retry-After (seconds, or a date)
    """
    for detail in details or ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if match := re.fullmatch(r"([\d.]+)s", str(delay)):
            return float(match[1])
    after = str((headers or {}).get("Retry-After", ""))
    if re.fullmatch(r"\d+(\.\d+)?", after):
        return float(after)
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return None


def make_call(model, key, endpoint, timeout, temperature, top_p, max_new_tokens):
    """A function of a prompt that makes one call and returns an Answer, or raises Trouble.

    endpoint: another server than Google's, or None; timeout: s
    Raises SystemExit: the package is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it announces its end at each import
            import google.generativeai as genai
            import requests
            from google.api_core.exceptions import GoogleAPICallError
            from google.api_core.retry import Retry
            from google.auth.exceptions import GoogleAuthError
    except ImportError as error:
        raise SystemExit(f"gemini needs a package that is not installed ({error.name}): pip "
                         f"install google-generativeai==0.8.6") from None

    options = {"api_endpoint": endpoint.rstrip("/")} if endpoint else None
    genai.configure(api_key=key, transport="rest", client_options=options)
    served = genai.GenerativeModel(model, generation_config={
        "temperature": temperature, "top_p": top_p, "max_output_tokens": max_new_tokens,
        "response_mime_type": "application/json", "response_schema": SCHEMA})
    # Without it the package retries 503 by itself, as long as it likes.
    once = Retry(predicate=lambda error: False)

    def call(prompt):
        try:
            response = served.generate_content(
                prompt, request_options={"timeout": timeout, "retry": once})
        except GoogleAPICallError as error:
            headers = getattr(error.response, "headers", None)
            raise Trouble(int(error.code or 0) or None, clean(error.message, key),
                          server_delay(error.details, headers)) from None
        except GoogleAuthError as error:
            raise Trouble(401, clean(str(error), key)) from None
        except requests.exceptions.Timeout:
            raise Trouble(None, f"no answer within {timeout} s") from None
        except Exception as error:  # lost connections, and bodies that the package does not expect
            raise Trouble(None, clean(f"{type(error).__name__}: {error}", key)) from None
        return read_answer(response)
    return call


def clean(message, key):
    """An error's text in one line of at most 200 characters, without the key and the address."""
    return re.sub(r"^POST \S+: ", "", " ".join(message.replace(key, "<key>").split()))[:200]


def read_answer(response):
    """A response of the package -> Answer."""
    # Thinking is billed as output, and counted only in the total.
    usage = response.usage_metadata
    tokens_in = usage.prompt_token_count
    tokens_out = max(usage.candidates_token_count, usage.total_token_count - tokens_in)

    blocked = response.prompt_feedback.block_reason
    if blocked:
        fault = f"prompt blocked: {getattr(blocked, 'name', blocked)}"
        return Answer(None, tokens_in, tokens_out, fault, final=True)
    if not response.candidates:
        return Answer(None, tokens_in, tokens_out, "no candidate: an empty list")
    candidate = response.candidates[0]
    reason = getattr(candidate.finish_reason, "name", str(candidate.finish_reason))
    text = "".join(part.text for part in candidate.content.parts)
    if reason not in ("STOP", "MAX_TOKENS", "FINISH_REASON_UNSPECIFIED"):
        return Answer(None, tokens_in, tokens_out, f"answer blocked: {reason}")
    if not text.strip():
        return Answer(None, tokens_in, tokens_out, f"empty answer: {reason}")
    return Answer(text, tokens_in, tokens_out)


def ask_patiently(call, prompt, limiter, tries):
    """One prompt -> Answer, tried up to `tries` times while the trouble may pass.

    A 429 holds back all threads for as long as the server asks for.

    Raises NoAnswer: 5xx, timeouts to the end. Raises Refused: this prompt is refused.
    Raises Stop: the key or the model is refused, or the quota is used up.
    """
    for attempt in range(1, tries + 1):
        limiter.wait()
        try:
            return call(prompt)
        except Trouble as error:
            trouble, code = error, error.code

        # What no other try will mend; Google's answer to a bad key is a 400.
        if code in (401, 403, 404) or code == 400 and "API key" in str(trouble):
            raise Stop(f"the server refuses the request: {trouble}")
        if code and 400 <= code < 500 and code not in PASSING:
            raise Refused(f"refused: {trouble}")

        # How long to wait. Some servers ask for 0 s: they are believed once.
        delay = min(BACK_OFF, 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
        if trouble.delay is not None:
            delay = trouble.delay if attempt == 1 else max(delay, trouble.delay)
        if delay > LONGEST_WAIT:
            raise Stop(f"the server asks to wait {delay:.0f} s: {trouble}")
        if attempt == tries and code == 429:
            raise Stop(f"refused {tries} times: {trouble}. Lower --requests-per-minute")
        if attempt == tries:
            raise NoAnswer(f"no answer: {trouble}, {tries} times")
        if code == 429:
            limiter.pause(delay)
        else:
            limiter.sleep(delay)
