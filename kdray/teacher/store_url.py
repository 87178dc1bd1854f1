"""What the URL of a store says, and the pyarrow filesystem behind it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import fsspec
from pyarrow import fs

from ..errors import ConfigError, did_you_mean

# What a query may say, by scheme; the values are no secrets.
OPTIONS = {
    "s3": ("endpoint_override", "scheme", "region", "anonymous", "allow_bucket_creation"),
    "gs": ("endpoint_override", "scheme", "anonymous", "project_id"),
}
FLAGS = {"anonymous", "allow_bucket_creation"}
# Seconds. With three attempts a store that does not answer is an error after a minute, a closed port after one second.
CONNECT_TIMEOUT, REQUEST_TIMEOUT, ATTEMPTS = 5, 20, 3


class Uncached(fs.FSSpecHandler):
    """fsspec remembers listings. Other processes write to the store too, so it must ask each time."""

    @property
    def fs(self):
        self._fs.invalidate_cache()
        return self._fs

    @fs.setter
    def fs(self, value):
        self._fs = value


@dataclass(frozen=True, repr=False)
class StoreURL:
    """shown: the URL without its secrets. root: bucket and prefix, of s3 and gs only."""

    url: str
    shown: str
    scheme: str
    bucket: str = ""
    root: str = ""
    options: dict = field(default_factory=dict)
    secrets: tuple[str, ...] = ()

    @classmethod
    def parse(cls, url: str) -> StoreURL:
        """Raises ConfigError for an option that there is not, and where fsspec lacks the scheme or its package."""
        scheme = url.partition("://")[0].lower()
        if "::" in scheme:
            raise ConfigError(f"{scheme}://…: chains of fsspec are not understood here; name the store itself")
        scheme = {"gcs": "gs"}.get(scheme, scheme)
        native = scheme in OPTIONS
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        if (native and ":" in host) or not _has_whole_port(parts):
            raise ConfigError(  # showing it may show the half of a secret
                f"{scheme}://…: there is a colon where {'the bucket' if native else 'the port'} should be. In a user, "
                f"key or secret write %2F for /, %3A for : and %40 for @"
                + ("; HOST:PORT of the store goes into ?endpoint_override=" if native else "")
            )
        shown, secrets = _without_secrets(parts, native)
        if not native:
            try:
                fsspec.get_filesystem_class(scheme)
            except (ImportError, ValueError) as error:
                raise ConfigError(
                    f"{shown} cannot be opened: {error}. Install the package into the environment of every worker, or "
                    "use a path, s3:// or gs://"
                ) from error
            return cls(url, shown, scheme, secrets=secrets)
        if not host:
            raise ConfigError(f"{scheme}:// needs a bucket: {scheme}://BUCKET/PREFIX")
        options = _options(scheme, shown, parts.query)
        if user:
            key, _, secret = map(unquote, user.partition(":"))
            if scheme != "s3" or not secret:
                raise ConfigError(
                    f"{shown}: only s3:// takes KEY:SECRET@ in front of the bucket. Leave it out: credentials come "
                    "from the environment, and ?anonymous=true does without"
                )
            options |= {"access_key": key, "secret_key": secret}
        return cls(url, shown, scheme, host, f"{host}/{unquote(parts.path).strip('/')}".rstrip("/"), options, secrets)

    @property
    def native(self) -> bool:
        """Whether pyarrow itself speaks to the store: an object is visible when it is closed, not before."""
        return self.scheme in OPTIONS

    def connect(self) -> tuple[fs.FileSystem, str]:
        """The filesystem, and the path in it. May ask the store, and raise what the store's library raises."""
        if not self.native:
            filesystem, root = fsspec.url_to_fs(self.url)
            return fs.PyFileSystem(Uncached(filesystem)), root.rstrip("/")
        if self.scheme == "gs":
            return fs.GcsFileSystem(**self.options, retry_time_limit=timedelta(seconds=REQUEST_TIMEOUT)), self.root
        options = dict(self.options)
        # The constructor heeds less than pyarrow's from_uri, which knows no timeouts.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options.setdefault("endpoint_override", endpoint)
        if not options.keys() & {"region", "endpoint_override"}:
            options["region"] = fs.resolve_s3_region(self.bucket)
        store = fs.S3FileSystem(
            **options,
            connect_timeout=CONNECT_TIMEOUT,
            request_timeout=REQUEST_TIMEOUT,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )
        if options.get("allow_bucket_creation"):
            store.create_dir(self.bucket, recursive=False)
        return store, self.root

    def hide(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def _options(scheme: str, shown: str, query: str) -> dict:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in OPTIONS[scheme]:
            raise ConfigError(f"{shown}: {scheme}:// has no option '{name}'.{did_you_mean(name, OPTIONS[scheme])}")
        if name in FLAGS:
            if value not in ("true", "false"):
                raise ConfigError(f"{shown}: {name} is true or false, not '{value}'")
            options[name] = value == "true"
    return options


def _has_whole_port(parts: SplitResult) -> bool:
    try:
        _ = parts.port
    except ValueError:
        return False
    return True


def _without_secrets(parts: SplitResult, native: bool) -> tuple[str, tuple[str, ...]]:
    """The URL as it may be shown, and what must not be shown anywhere. A user's name is no secret, a key's is."""
    user, _, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    harmless = set().union(*OPTIONS.values())
    query = parse_qsl(parts.query, keep_blank_values=True)
    raw = {password, name if native else "", *(value for key, value in query if key not in harmless)} - {""}
    kept = urlencode([(key, value if key in harmless else "***") for key, value in query], safe=":/*")
    shown = parts._replace(netloc=host if native or password else parts.netloc, query=kept, fragment="").geturl()
    return shown, tuple(sorted(raw | {unquote(text) for text in raw}, key=len, reverse=True))
