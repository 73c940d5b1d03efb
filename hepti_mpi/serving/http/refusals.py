"""Why a client does not get what it asks, as HTTP says it: a status and an error object as OpenAI's clients read it. Pure."""

from typing import Any

from hepti_mpi.errors import Busy, HeptiError, InputError, ModelError, NotReady, ServiceError
from hepti_mpi.serving.asking import NoText

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error",
    408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error",
    501: "not_supported_error", 503: "service_unavailable_error", 504: "timeout_error",
}  # fmt: skip
CODES = {401: "invalid_api_key", 413: "too_large", 422: "invalid_value", 429: "rate_limit_exceeded", 501: "not_supported"}
CODES |= {408: "timeout", 415: "not_supported", 503: "not_ready", 504: "timeout"}


class Refused(HeptiError):
    """A request that is answered with `status`; `param`: the field that is the reason, `retry_after`: seconds."""

    def __init__(self, status: int, sentence: str, param: str | None = None, code: str | None = None, retry_after: float | None = None):
        super().__init__(sentence)
        self.status, self.param, self.retry_after = status, param, retry_after
        self.code = code or CODES.get(status)

    @classmethod
    def of(cls, error: HeptiError) -> "Refused":
        """Return what an error of the package is over HTTP."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, ServiceError):
            status = 429 if isinstance(error, Busy) else 503 if isinstance(error, NotReady) else 500
            return cls(status, str(error), retry_after=error.retry_after)
        if isinstance(error, NoText):
            return cls(501, str(error), "model")
        return cls(422 if isinstance(error, (InputError, ModelError)) else 500, str(error))

    def document(self) -> dict[str, Any]:
        """Return the error object."""
        said = {"message": str(self), "type": TYPES.get(self.status, "server_error"), "param": self.param, "code": self.code}
        return {"error": said}

    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
