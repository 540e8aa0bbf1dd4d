"""Kubeconfigs: where a cluster is, who one is there, and whom to believe that it is the cluster.

Only tokens are understood. A client certificate or a program that makes tokens would need the whole
of the Kubernetes client for one question that is a plain GET; what is not understood is named.
"""

from __future__ import annotations

import base64
import binascii
import ssl
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from tidemill.providers.base import UnusableError
from tidemill.providers.http import Wire

REMEDY = "have a service account make a token, and put it into the kubeconfig as the user's token"
FOREIGN = {
    "client-certificate": "a client certificate",
    "client-certificate-data": "a client certificate",
    "exec": "a program that makes tokens",
    "auth-provider": "an auth provider",
    "username": "a password",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What one needs to ask a cluster.

    Attributes:
        server: Its address.
        namespace: Whose things are asked for.
        token: Who is asking.
        trust: Whom to believe that it is the cluster; None for the usual authorities.
    """

    server: str
    namespace: str
    token: str
    trust: ssl.SSLContext | None


class Cluster(Wire):
    """Where a cluster is."""

    server: str
    authority: str | None = Field(alias="certificate-authority", default=None)
    authority_data: str | None = Field(alias="certificate-authority-data", default=None)
    careless: bool = Field(alias="insecure-skip-tls-verify", default=False)


class Context(Wire):
    """Who one is where."""

    cluster: str
    user: str
    namespace: str = "default"


class NamedCluster(Wire):
    """An entry of `clusters`."""

    name: str
    cluster: Cluster


class NamedContext(Wire):
    """An entry of `contexts`."""

    name: str
    context: Context


class NamedUser(Wire):
    """An entry of `users`."""

    name: str
    user: dict[str, object]


class Kubeconfig(Wire):
    """The file."""

    current: str = Field(alias="current-context")
    clusters: list[NamedCluster]
    contexts: list[NamedContext]
    users: list[NamedUser]


def read_kubeconfig(path: Path) -> Access:
    """What a kubeconfig says of its current context.

    Raises:
        UnusableError: It cannot be read, or asks for more than a token.
    """
    try:
        config = Kubeconfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        context = next(it.context for it in config.contexts if it.name == config.current)
        cluster = next(it.cluster for it in config.clusters if it.name == context.cluster)
        user = next(it.user for it in config.users if it.name == context.user)
        token = _token(user, path.parent)
        trust = _trust(cluster, path.parent)
    except (ssl.SSLError, binascii.Error):
        raise _unusable(path, "its certificate authority is no certificate") from None
    except OSError as error:
        raise _unusable(path, f"{error.strerror}: {error.filename}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise _unusable(path, "it is not YAML") from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise _unusable(path, f"{where or 'all of it'} is missing or wrong") from None
    except StopIteration:
        raise _unusable(path, "its current context names what is not in it") from None
    if not token:
        known = [said for key, said in FOREIGN.items() if key in user]
        raise UnusableError(f"{path} wants {known[0] if known else 'no token'}", REMEDY)
    if cluster.careless:
        raise _unusable(path, "insecure-skip-tls-verify would show the token to anyone")
    return Access(server=cluster.server, namespace=context.namespace, token=token, trust=trust)


def _token(user: dict[str, object], folder: Path) -> str:
    match user:
        case {"token": str(token)}:
            return token.strip()
        case {"tokenFile": str(name)}:
            return (folder / name).read_text(encoding="utf-8").strip()
        case _:
            return ""


def _trust(cluster: Cluster, folder: Path) -> ssl.SSLContext | None:
    if cluster.authority_data:
        pem = base64.b64decode(cluster.authority_data).decode("ascii", errors="replace")
        return ssl.create_default_context(cadata=pem)
    if cluster.authority:
        return ssl.create_default_context(cafile=str(folder / cluster.authority))
    return None


def _unusable(path: Path, reason: str) -> UnusableError:
    return UnusableError(f"{path} cannot be used ({reason})", "get a new kubeconfig")
