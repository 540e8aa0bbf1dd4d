"""AWS through boto3, as patient and as plain-spoken as the other vendors are through `Api`.

boto3 signs what is sent and knows the services. It is an extra, so it is imported only once it is
needed, and nothing of it leaves this module: pages come out as typed models, its exceptions as
`ProviderError`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from tidemill import __version__
from tidemill.providers import http
from tidemill.providers.base import UnusableError
from tidemill.providers.http import Wire
from tidemill.providers.trouble import ProviderError, Trouble, trouble_of

REMEDY = "export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"

CODES = dict[str, Trouble](
    AuthFailure=Trouble.unauthorized,
    ExpiredToken=Trouble.unauthorized,
    ExpiredTokenException=Trouble.unauthorized,
    InvalidClientTokenId=Trouble.unauthorized,
    InvalidSignatureException=Trouble.unauthorized,
    RequestExpired=Trouble.unauthorized,
    SignatureDoesNotMatch=Trouble.unauthorized,
    UnrecognizedClientException=Trouble.unauthorized,
    AccessDenied=Trouble.forbidden,
    AccessDeniedException=Trouble.forbidden,
    OptInRequired=Trouble.forbidden,
    UnauthorizedOperation=Trouble.forbidden,
    RequestLimitExceeded=Trouble.throttled,
    Throttling=Trouble.throttled,
    ThrottlingException=Trouble.throttled,
)
"""Where AWS's word says more than the status it comes with."""

W = TypeVar("W", bound=Wire)


class AwsApi:
    """AWS's services in all regions.

    Args:
        provider: Name of the vendor, for errors.
        session: A `boto3.Session` with credentials.
        url: Where requests go instead of to AWS; None for AWS.
    """

    def __init__(self, provider: str, session: Any, url: str | None) -> None:
        self.provider = provider
        self._session = session
        self._url = url
        self._clients: dict[tuple[str, str], Any] = {}
        self._making = threading.Lock()  # clients may be shared by threads, making them may not
        self._errors: Any = import_module("botocore.exceptions")
        self._parsers: Any = import_module("botocore.parsers")

    @classmethod
    def connect(cls, provider: str, environment: Mapping[str, str], url: str | None) -> Self:
        """Find the package and the credentials; these may be wherever boto3 looks for them.

        Raises:
            UnusableError: One of the two is missing.
        """
        try:
            boto3: Any = import_module("boto3")
            errors: Any = import_module("botocore.exceptions")
        except ImportError:
            raise UnusableError("boto3 is not installed", "pip install 'tidemill[aws]'") from None
        try:
            session = boto3.Session(
                aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
                aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
                aws_session_token=environment.get("AWS_SESSION_TOKEN"),
                profile_name=environment.get("AWS_PROFILE"),
            )
            found = session.get_credentials()
        except errors.BotoCoreError as error:
            raise UnusableError(f"no credentials of AWS can be read: {error}", REMEDY) from None
        if found is None:
            raise UnusableError("no credentials of AWS are found", REMEDY)
        return cls(provider, session, url)

    def pages(
        self, service: str, region: str, question: str, model: type[W], **asked: Any
    ) -> Iterator[W]:
        """All pages of an answer.

        Args:
            service: boto3's name of it.
            region: Where it is asked.
            question: boto3's name of the operation.
            model: What each page is decoded into.
            asked: Parameters of the operation.

        Raises:
            ProviderError: No usable answer came.
        """
        where = f"{service} {question} in {region}"
        told = (
            self._errors.BotoCoreError,
            self._errors.ClientError,
            self._parsers.ResponseParserError,
        )
        try:
            for page in self._client(service, region).get_paginator(question).paginate(**asked):
                yield self.read(model, page, where)
        except told as error:
            raise self._explained(error, where) from None

    def read(self, model: type[W], plain: Any, where: str) -> W:
        """An answer, or a part of one that is JSON as text, as a typed model.

        Raises:
            ProviderError: It is not what `model` says.
        """
        try:
            if isinstance(plain, str):
                return model.model_validate_json(plain)
            return model.model_validate(plain)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)[0]
            detail = f"{where}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
            raise ProviderError(self.provider, Trouble.unreadable, detail) from None

    def close(self) -> None:
        """Close its connections."""
        for client in self._clients.values():
            client.close()

    def _client(self, service: str, region: str) -> Any:
        config: Any = import_module("botocore.config")
        place = (service, region)
        with self._making:
            if place not in self._clients:
                self._clients[place] = self._session.client(
                    service,
                    region_name=region,
                    endpoint_url=self._url,
                    config=config.Config(
                        connect_timeout=http.CONNECT_S,
                        read_timeout=http.SILENCE_S,
                        retries={"mode": "standard", "total_max_attempts": http.TRIES},
                        user_agent_extra=f"tidemill/{__version__}",
                    ),
                )
            return self._clients[place]

    def _explained(self, error: Exception, where: str) -> ProviderError:
        said = " ".join(self._hide(str(error)).split())[: http.LONGEST_QUOTE]
        return ProviderError(self.provider, self._trouble_of(error), f"{where}: {said}")

    def _trouble_of(self, error: Any) -> Trouble:
        known = self._errors
        match error:
            case known.ClientError():
                code: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                word: str = error.response.get("Error", {}).get("Code", "")
                return CODES.get(word) or trouble_of(code, word)
            case known.ConnectTimeoutError() | known.ReadTimeoutError():
                return Trouble.slow
            case known.ConnectionError() | known.HTTPClientError():
                return Trouble.unreachable
            case known.BotoCoreError():
                return Trouble.unauthorized  # credentials that cannot be renewed
            case _:
                return Trouble.unreadable

    def _hide(self, text: str) -> str:
        with contextlib.suppress(self._errors.BotoCoreError, self._errors.ClientError):
            keys = self._session.get_credentials().get_frozen_credentials()
            for secret in (keys.access_key, keys.secret_key, keys.token):
                text = text.replace(secret, http.HIDDEN) if secret else text
        return text
