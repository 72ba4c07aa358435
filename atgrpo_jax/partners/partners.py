"""Says which model on which server speaks for a role. See docs/partners.md."""

import dataclasses
from typing import Literal

from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.engines.sglang.addresses import parsed


@dataclasses.dataclass(frozen=True)
class Partner:
    """A model that speaks for a role and is not trained, on a server that speaks the OpenAI API."""

    url: str  # what comes before /chat/completions, e.g. "http://127.0.0.1:30000/v1"
    model: str  # its name on the server, as URL/models lists it
    # A file with the API key, or the environment variable that holds it. The key is never written.
    api_key_file: str = ""
    api_key_variable: str = ""
    temperature: float = 1.0
    max_tokens: int = 1024  # of an answer
    # What the server calls that limit. Some models take the second one only.
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    deadline_s: float = 600.0  # seconds for an answer, all tries together
    # Failed tries at an answer before the run stops. A server that asks for patience does not fail.
    tries: int = 6
    at_once: int = 16  # requests on their way at the same time, at most
    # What the whole run may take; 0 for no limit. The run stops before it asks for more.
    most_answers: int = 0
    most_tokens: int = 0  # of prompts and answers, as the server counts them

    def __post_init__(self):
        if isinstance(self.url, str) and any(mark in self.url for mark in "@?#"):
            raise ValueError(  # does not show the address: there may be a secret in it
                "Partner.url: an address with a user, password or query in it; give http://host:port/v1 "
                "alone, and the server's API key as api_key_file or api_key_variable"
            )
        check_types(self)
        object.__setattr__(self, "url", self.url.rstrip("/"))
        require(self, "url", parsed(self.url) is not None, "must look like http://host:30000/v1")
        require(self, "model", bool(self.model), "name one of the models that URL/models lists")
        rule = "the key is in a file or in a variable, not in both"
        require(self, "api_key_file", not (self.api_key_file and self.api_key_variable), rule)
        require(self, "temperature", self.temperature >= 0, "must not be negative")
        require(self, "deadline_s", self.deadline_s > 0, "must be positive")
        for name in ("max_tokens", "tries", "at_once"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("most_answers", "most_tokens"):
            require(self, name, getattr(self, name) >= 0, "must not be negative; 0 for no limit")

    def __str__(self) -> str:
        return f"{self.model} at {self.url}"

    @property
    def sampling(self) -> Sampling:
        """Returns the settings of its answers, as the run's records show them."""
        return Sampling(self.temperature, self.max_tokens)

    def same_answers(self) -> "Partner":
        """Returns the partner without what changes no answer. Runs may go on with another one of that."""
        return Partner(
            "http://anywhere", self.model, temperature=self.temperature, max_tokens=self.max_tokens
        )
