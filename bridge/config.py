"""Settings: environment (`BRIDGE_…`), `.env`, a TOML file, secret files. One gateway needs a token or an account.

Precedence, first wins: environment, `.env`, secret files, the TOML file named by `BRIDGE_CONFIG`.
"""

import json
import os
import re
import socket
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit, urlunsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    InitSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from bridge import fleet
from bridge.model import BadSetting

PREFIX = "BRIDGE_"
CONFIG_VARIABLE = "BRIDGE_CONFIG"
ENVIRONMENT = "environment"
NEVER_RETRIED = 0.0
LOOPBACK = "127.0.0.1"
LAST_PORT = 65_535
SITE = "{site}"
RESERVED = ("bridge", "site")
"""Levels below the base topic that are no site's."""


def _topic(value: str) -> str:
    if not re.fullmatch(r"[^\s/+#$\x00][^\s+#\x00]*(?<!/)", value) or "//" in value:
        raise ValueError("must be a topic without blanks, +, #, a leading $ or empty levels, such as enphase")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"(https?://)?[^\s/@?#]+/?", value):
        raise ValueError("must be a name, an address, host:port or a URL such as http://192.168.1.20")
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):  # unknown, or none are installed
        raise ValueError("is no time zone known here, such as Europe/Berlin") from None
    return value


def _period(value: float) -> float:
    if value != NEVER_RETRIED and not 1 <= value <= 7 * 86_400:
        raise ValueError("must be 0 (off) or 1 to 604800 seconds")
    return value


def _listen(value: str) -> str:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|[A-Za-z0-9._-]+):(\d{1,5})", value)
    if found is None or int(found[2]) > LAST_PORT or (found[1] and ":" not in found[1]):
        raise ValueError("must be a port such as 8080, or an address and a port such as 0.0.0.0:8080 or [::]:8080")
    return value


def _base(value: str) -> str:
    levels = [level for level in value.split("/") if level != SITE]
    if not levels or any(set("{}") & set(level) for level in levels):
        raise ValueError(f"may have {SITE} for a level of its own, beside at least one other")
    return value


def _shard(value: str) -> str:
    return str(fleet.Shard.of(value, socket.gethostname()))


Topic = Annotated[str, AfterValidator(_topic)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Period = Annotated[float, AfterValidator(_period)]
Listen = Annotated[str, AfterValidator(_listen)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class GatewaySettings(Section):
    """One IQ Gateway."""

    host: Annotated[str, AfterValidator(_host)] = "envoy.local"
    """`envoy.local`, an address, `host:port`, or a URL (`http://…` for firmware before 7)"""
    token: SecretStr | None = None
    """a token pasted from the web page"""
    token_file: Path | None = None
    """a file that holds such a token"""
    username: str | None = None
    """Enphase account, to get and renew tokens"""
    password: SecretStr | None = None
    """its password"""
    serial: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,32}$")] | None = None
    """expected serial number; learnt from the gateway when absent"""
    tls: Literal["pin", "strict", "off"] = "pin"
    """`pin` trusts the gateway's key on first use, `strict` never pins anew, `off` checks nothing"""
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """the site's name in Home Assistant"""
    site: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """what `{site}` in the base topic stands for, in the letters of a topic; the name when absent"""

    @model_validator(mode="after")
    def _account_is_whole(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together: set both, or neither")
        return self

    @property
    def base_url(self) -> str:
        """Scheme, host and port; HTTPS unless the host is given as a URL."""
        host = self.host.rstrip("/")
        return host if host.startswith(("http://", "https://")) else f"https://{host}"

    @property
    def level(self) -> str:
        """The site's level in topics; empty where it has none."""
        return fleet.level(self.site or self.name or "")


class CloudSettings(Section):
    """Enphase's cloud, where tokens come from."""

    login_url: Url = "https://enlighten.enphaseenergy.com/login/login.json"
    """where an account logs in"""
    token_url: Url = "https://entrez.enphaseenergy.com/tokens"  # noqa: S105 - an address, no token
    """where a token is asked for"""
    entrez_url: Url = "https://enlighten.enphaseenergy.com/entrez-auth-token"
    """the other road to a token"""
    ca_file: Path | None = None
    """certificates to trust instead of the system's"""

    @field_validator("login_url", "token_url", "entrez_url")
    @classmethod
    def _safe(cls, value: str) -> str:
        url = urlsplit(value)
        if url.scheme == "http" and url.hostname not in {"127.0.0.1", "localhost", "::1"}:
            raise ValueError("plain http would show the password to everybody: use https")
        return value


def _urls(given: str | list[Any]) -> list[str]:
    """A password may hold a comma, too."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        given = json.loads(given)
    if isinstance(given, str):
        given = [url.strip() for url in re.split(r",(?=\s*\w+://)", given)]
    if not all(isinstance(url, str) for url in given):
        raise ValueError("no list of texts")
    return given


def _without_user(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A URL, and the user and password that stood in it."""
    url = urlsplit(text)
    host = url.netloc.rpartition("@")[2]
    found = {"username": url.username, "password": url.password}
    user = tuple((name, unquote(value)) for name, value in found.items() if value is not None)
    return text if host == url.netloc else urlunsplit(url._replace(netloc=host)), user


def _is_broker(text: str) -> bool:
    try:
        url = urlsplit(text)
        url.port  # noqa: B018 - raises where the port is no number
    except ValueError:
        return False
    network = url.scheme in {"mqtt", "mqtts", "ws", "wss"} and bool(url.hostname) and "," not in url.netloc
    # An @ behind the host is what a password with a / in it leaves behind.
    return (network or (url.scheme == "unix" and bool(url.path))) and not (
        url.query or url.fragment or "@" in url.path
    )


class MqttSettings(Section):
    """The broker."""

    url: str = "mqtt://localhost:1883"
    """`mqtt://`, `mqtts://`, `ws://`, `wss://` host and port, or `unix:///path`; several brokers with commas"""
    username: str | None = None
    """user at the broker"""
    password: SecretStr | None = None
    """its password"""
    ca_file: Path | None = None
    """certificates to trust instead of the system's"""
    cert_file: Path | None = None
    """client certificate"""
    key_file: Path | None = None
    """key of the client certificate"""
    base_topic: Annotated[Topic, AfterValidator(_base)] = "enphase"
    """first levels of all topics; `{site}` in it is each gateway's site, as in `enphase/{site}`"""
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    """client id; one is made and kept when absent"""
    protocol: Literal["5", "3.1.1"] = "5"
    """`5` falls back to `3.1.1` where the broker refuses it"""
    payload: Literal["both", "values", "json"] = "both"
    """value topics, JSON documents, or both"""
    heartbeat: Annotated[float, Field(ge=10, le=86_400)] = 300
    """seconds after which everything is published again"""
    rate: Annotated[float, Field(ge=0, le=100_000)] = 0
    """messages a second at most, for brokers that drop what exceeds their limit; `0` is no limit"""
    deadband: Annotated[float, Field(ge=0, le=1000)] = 1
    """scales the change that is worth a message; `0` sends every change"""

    @model_validator(mode="before")
    @classmethod
    def _user_in_url(cls, data: Any) -> Any:
        """`mqtt://user:password@host`: the password must not stay in a text that is printed."""
        if not isinstance(data, Mapping) or not isinstance(data.get("url"), str | list):
            return data
        try:
            parts = [_without_user(url) for url in _urls(data["url"])]
        except ValueError:
            return {**data, "url": "unreadable"}
        users = {user for _, user in parts if user}
        if len(users) > 1:
            raise ValueError("url: all brokers must take the same user and password")
        found = {"url": ",".join(url for url, _ in parts)} | dict(next(iter(users), ()))
        return {**found, **{key: value for key, value in data.items() if key != "url"}}

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        message = (
            "must look like mqtt://host:1883, mqtts://host:8883, ws://host/mqtt, wss://host/mqtt or unix:///path "
            "(in a password write %2F for /, %3F for ? and %23 for #)"
        )
        urls = _urls(value)
        if not urls or not all(map(_is_broker, urls)):
            raise ValueError(message)
        if len(set(urls)) < len(urls):
            raise ValueError("names the same broker twice")
        return value

    @property
    def each(self) -> tuple[Self, ...]:
        """The same settings for each broker of the cluster."""
        return tuple(self.model_copy(update={"url": url}) for url in _urls(self.url))

    @property
    def root(self) -> str:
        """The base topic without the site: that of what is no gateway's."""
        return "/".join(level for level in self.base_topic.split("/") if level != SITE)

    @model_validator(mode="after")
    def _key_needs_certificate(self) -> Self:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file needs cert_file")
        if self.password is not None and self.username is None:
            raise ValueError("password needs username")
        return self


class HomeAssistantSettings(Section):
    """Home Assistant's MQTT discovery."""

    discovery: Literal["device", "component", "off"] = "device"
    """`device` (Home Assistant 2024.11 on, openHAB 5.2 on), `component` for older ones, or `off`"""
    prefix: Topic = "homeassistant"
    """discovery prefix"""


class PollSettings(Section):
    """Seconds between polls of each source; `0` turns one off."""

    profile: Literal["gentle", "normal", "live"] = "normal"
    """sets all periods at once; `live` polls livedata every second"""
    budget: Annotated[float, Field(ge=0.01, le=0.9)] | None = None
    """share of the gateway's time that all requests together may take; default 0.25, `live` 0.6, `gentle` 0.1"""
    info: Annotated[Period, Field(ge=1)] | None = None
    """`/info`; it tells which gateway this is, so it can't be turned off"""
    device_list: Period | None = None
    """`/ivp/ensemble/device_list`"""
    meters: Period | None = None
    """`/ivp/meters`"""
    readings: Period | None = None
    """`/ivp/meters/readings`"""
    production: Period | None = None
    """`/api/v1/production`"""
    energy: Period | None = None
    """`/ivp/pdm/energy`"""
    inverters: Period | None = None
    """`/api/v1/production/inverters`"""
    device_data: Period | None = None
    """`/ivp/pdm/device_data`"""
    livedata: Period | None = None
    """`/ivp/livedata/status`"""
    consumption: Period | None = None
    """`/ivp/meters/reports/consumption`"""
    grid: Period | None = None
    """`/ivp/meters/gridReading`"""
    inventory: Period | None = None
    """`/ivp/ensemble/inventory`"""
    power: Period | None = None
    """`/ivp/ensemble/power`"""
    secctrl: Period | None = None
    """`/ivp/ensemble/secctrl`"""
    relay: Period | None = None
    """`/ivp/ensemble/relay`"""
    dry_contacts: Period | None = None
    """`/ivp/ensemble/dry_contacts`"""
    dry_contact_settings: Period | None = None
    """`/ivp/ss/dry_contact_settings`"""
    generator: Period | None = None
    """`/ivp/ensemble/generator`"""
    gen_config: Period | None = None
    """`/ivp/ss/gen_config`"""
    tariff: Period | None = None
    """`/admin/lib/tariff`"""
    status: Period | None = None
    """`/ivp/ensemble/status`"""


class SiteSettings(Section):
    """How the site's flows are made."""

    netting: Literal["sum", "per_phase"] = "sum"
    """how the utility counts: the net of all phases, or each phase for itself"""
    third_party_pv: bool = False
    """whether another maker's panels, where they have a meter (`pv3p`), are counted as sun"""


class HttpSettings(Section):
    """Status page, health checks and metrics, by HTTP."""

    listen: Listen | None = None
    """`address:port`, or a port for this machine alone, such as `8080`; nothing listens when absent"""
    hosts: Annotated[str, Field(pattern=r"^[A-Za-z0-9.,_ -]*$")] = ""
    """names, with commas between, that a browser may use for it beside addresses and names of the local network"""

    @field_validator("listen", mode="before")
    @classmethod
    def _port_alone(cls, value: Any) -> Any:
        return f"{LOOPBACK}:{value}" if str(value).isdecimal() else value or None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on. Call it only where there is something to listen on."""
        host, _, port = (self.listen or "").rpartition(":")
        return host.strip("[]"), int(port)


class LogSettings(Section):
    """Logging, to standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """least severe level that is written"""
    format: Literal["text", "json"] = "text"
    """one line of text or one JSON object for each event"""

    @field_validator("level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


def _state_dir() -> Path:
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    home = os.environ.get("XDG_STATE_HOME")
    return Path(given) if given else Path(home or Path("~/.local/state").expanduser()) / "iqgateway2mqtt"


class Settings(BaseSettings):
    """All settings of the bridge."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",  # other programs' lines in .env; unknown BRIDGE_ names are refused by load()
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    gateway: GatewaySettings = GatewaySettings()
    gateways: tuple[GatewaySettings, ...] = ()
    """several gateways: a JSON list of objects with the fields of one"""
    gateways_file: Path | None = None
    """the same from a file, TOML or `.json`; it is looked at every ten seconds, and changes take effect at once"""
    shard: Annotated[str, AfterValidator(_shard)] | None = None
    """this bridge's part of the gateways, such as `0/3`; `auto/3` takes the number that ends the host's name"""
    cloud: CloudSettings = CloudSettings()
    mqtt: MqttSettings = MqttSettings()
    homeassistant: HomeAssistantSettings = HomeAssistantSettings()
    poll: PollSettings = PollSettings()
    site: SiteSettings = SiteSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    timezone: Annotated[str, AfterValidator(_zone)] | None = None
    """where the days of `energy_today` begin, such as `Europe/Berlin`; this machine's when absent"""
    instance: Name | None = None
    """name of this bridge where several share a broker; with a shard `shard-0` and so on when absent"""
    state_dir: Path = Field(default_factory=_state_dir)
    """where tokens, keys and ids are kept; default `$STATE_DIRECTORY`, else the user's state folder"""

    @model_validator(mode="before")
    @classmethod
    def _read_gateways(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not data.get("gateways_file"):
            return data
        if {"gateway", "gateways"} & data.keys():
            raise ValueError("BRIDGE_GATEWAYS_FILE: set either the file, or BRIDGE_GATEWAY(S), not both")
        try:
            return {**data, "gateways": fleet.listed(Path(data["gateways_file"]))}
        except ValueError as error:
            problem = f"BRIDGE_GATEWAYS_FILE: {error}"
        raise ValueError(problem)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.gateways and "gateway" in self.model_fields_set:
            raise ValueError("BRIDGE_GATEWAYS: set either one gateway (BRIDGE_GATEWAY__…) or several, not both")
        hosts = [gateway.base_url for gateway in self.every_gateway]
        if len(set(hosts)) != len(hosts):
            raise ValueError("BRIDGE_GATEWAYS: names the same host twice")
        serials = [gateway.serial.lower() for gateway in self.every_gateway if gateway.serial]
        if len(set(serials)) != len(serials):
            raise ValueError("BRIDGE_GATEWAYS: names the same serial twice")
        if self.shard is not None and len(serials) < len(hosts):
            raise ValueError("BRIDGE_SHARD: each gateway needs its serial, since that says whose it is")
        if SITE in self.mqtt.base_topic:
            self._check_sites()
        if self.mqtt.payload == "json" and self.homeassistant.discovery != "off":
            raise ValueError(
                "BRIDGE_MQTT__PAYLOAD: json has no value topics for Home Assistant: set it to both, "
                "or BRIDGE_HOMEASSISTANT__DISCOVERY to off"
            )
        return self

    def _check_sites(self) -> None:
        for gateway in self.every_gateway:
            if not gateway.level:
                raise ValueError(f"BRIDGE_MQTT__BASE_TOPIC: {SITE} needs a name or a site for {gateway.host}")
            if gateway.level in RESERVED:
                raise ValueError(f"BRIDGE_GATEWAYS: the site of {gateway.host} can't be called {gateway.level}")

    @property
    def every_gateway(self) -> tuple[GatewaySettings, ...]:
        """Also those that are another bridge's."""
        several = self.gateways or self.gateways_file is not None
        return self.gateways if several else (self.gateway,)

    @property
    def all_gateways(self) -> tuple[GatewaySettings, ...]:
        """All that this bridge has to poll."""
        if self.shard is None:
            return self.every_gateway
        mine = fleet.Shard.of(self.shard)
        return tuple(gateway for gateway in self.every_gateway if mine.owns(gateway.serial or ""))

    @property
    def own_name(self) -> str | None:
        """What tells this bridge from others at its broker."""
        return self.instance or (f"shard-{self.shard.partition('/')[0]}" if self.shard else None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = InitSettingsSource(settings_cls, _toml())
        return init_settings, env_settings, dotenv_settings, _Secrets(file_secret_settings), toml


def _toml() -> dict[str, Any]:
    """What the TOML file holds. What is empty in it is not set, as in the environment."""
    file = config_file()
    if file is None or not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8-sig")  # some editors put a mark before it, which TOML does not know
    known = {name.removeprefix(PREFIX).rpartition("__")[2].lower() for name in names()}
    found: dict[str, Any] = _filled(tomllib.loads(text), known)
    return found


def _filled(data: Any, known: Collection[str]) -> Any:
    """Without empty texts, unless nobody knows what they stand for."""
    if isinstance(data, Mapping):
        return {key: _filled(item, known) for key, item in data.items() if item != "" or key not in known}
    return [_filled(item, known) for item in data] if isinstance(data, list) else data


class _Secrets(NestedSecretsSettingsSource):
    """Files named as the variable in lower case. Those of others in the same folder are not even opened."""

    def __init__(self, source: PydanticBaseSettingsSource) -> None:
        folders = secret_folders()[::-1]  # pydantic lets the last win
        super().__init__(source, secrets_dir=folders, secrets_dir_missing="ok", secrets_nested_delimiter="__")

    @classmethod
    def load_secrets(cls, path: Path) -> dict[str, str]:
        ours = (file for file in sorted(path.iterdir()) if file.name.upper().startswith(PREFIX) and file.is_file())
        return {file.name: file.read_text(encoding="utf-8-sig", errors="replace").strip() for file in ours}


def config_file() -> Path | None:
    """The TOML file, named in the environment or in `.env`."""
    found = os.environ.get(CONFIG_VARIABLE) or DotEnvSettingsSource(Settings).env_vars.get(CONFIG_VARIABLE.lower())
    return Path(found) if found else None


def secret_folders() -> list[Path]:
    """systemd's credentials first, then a container's secrets."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    folders = [Path(credentials)] if credentials else []
    return [folder for folder in (*folders, Path("/run/secrets")) if folder.is_dir()]


def found() -> dict[str, list[str]]:
    """Where settings stand, first the place that wins, and their names: never their values."""
    file = config_file()
    places: dict[str, Iterable[str]] = {ENVIRONMENT: os.environ, ".env": DotEnvSettingsSource(Settings).env_vars}
    places |= {str(folder): _Secrets.load_secrets(folder) for folder in secret_folders()}
    places |= {str(file): _flat(_toml())} if file else {}
    known = {*names()}
    return {place: sorted({name.upper() for name in named} & known) for place, named in places.items()}


def _flat(data: Mapping[str, Any], prefix: str = PREFIX) -> Iterator[str]:
    """The names in a TOML file, as the environment has them."""
    for key, value in data.items():
        yield from _flat(value, f"{prefix}{key}__") if isinstance(value, Mapping) else (f"{prefix}{key}",)


def names(model: type[BaseModel] = Settings, prefix: str = PREFIX) -> Iterator[str]:
    """Every environment variable that means something, `BRIDGE_CONFIG` aside."""
    for key, field in model.model_fields.items():
        name = f"{prefix}{key.upper()}"
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names(field.annotation, f"{name}__")


def load(**overrides: Any) -> Settings:
    """Read all sources.

    Raises:
        BadSetting: names each setting that can't be used, in one line, without its value.
    """
    return _explained(lambda: _load(overrides))


def reread(settings: Settings) -> Settings:
    """The same settings with what is in the file of gateways now.

    Raises:
        BadSetting: it can't be used.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set - {"gateways"}}
    return _explained(lambda: Settings(**given))


def _load(overrides: Mapping[str, Any]) -> Settings:
    _refuse_unknown()
    return Settings(**overrides)


def _explained(work: Callable[[], Settings]) -> Settings:
    try:
        return work()
    except ValidationError as error:
        problem = "; ".join(_explain(item["loc"], item["msg"], item["type"]) for item in error.errors())
    except SettingsError as error:  # the text of the cause may hold the value
        field = re.search(r'field "(\w+)"', str(error))
        problem = f"{PREFIX}{field[1].upper()}: not valid JSON" if field else str(error)
    except tomllib.TOMLDecodeError as error:
        problem = f"{CONFIG_VARIABLE}: not valid TOML ({error})"
    except UnicodeDecodeError:
        problem = f".env or the file of {CONFIG_VARIABLE}: not UTF-8 text"
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    raise BadSetting(problem)  # outside of the handlers: what they handled may hold a secret


def _explain(where: tuple[int | str, ...], message: str, kind: str) -> str:
    text = message.removeprefix("Value error, ")
    if not where:
        return text
    name = PREFIX + "__".join(_shown(str(part)) for part in where)
    if kind == "extra_forbidden":
        return _unknown(name)
    if kind == "model_type":
        return f"{name}: must be a section with settings of its own, such as [{where[0]}] in TOML"
    return f"{name}: {text[:1].lower()}{text[1:]}"


def _shown(part: str) -> str:
    """As in the environment; a name whose only fault is its capitals keeps them."""
    return part.upper() if part.islower() else part


def _unknown(name: str) -> str:
    known = list(names())
    if name.upper() in known:
        return f"{name}: must be written in small letters here"
    import difflib  # noqa: PLC0415 - 0.2 MB that only who has made a mistake needs

    near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
    return f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _refuse_unknown() -> None:
    file = config_file()
    if file and not file.is_file():
        raise BadSetting(f"{CONFIG_VARIABLE}: names no file that there is: {file}")
    secrets = (name for folder in secret_folders() for name in _Secrets.load_secrets(folder))
    elsewhere = (name.upper() for name in (*os.environ, *DotEnvSettingsSource(Settings).env_vars, *secrets))
    unknown = {name for name in elsewhere if name.startswith(PREFIX)} - {*names(), CONFIG_VARIABLE}
    sections = _toml().keys() - Settings.model_fields.keys()
    if unknown := unknown | {PREFIX + _shown(section) for section in sections}:
        raise BadSetting("; ".join(_unknown(name) for name in sorted(unknown)))
