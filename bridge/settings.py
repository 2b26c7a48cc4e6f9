"""Reads the settings from the environment (`BRIDGE_…`), `.env`, secret files and a TOML file.

If several of these have a value for one setting, the first one wins, in this order. `BRIDGE_CONFIG` names the TOML
file.
"""

import json
import os
import re
import socket
import stat
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit
from zoneinfo import ZoneInfo

from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from bridge import sharding
from bridge.model import DAY_S, BadSetting, SourceName

VARIABLE_PREFIX = "BRIDGE_"
CONFIG_VARIABLE = "BRIDGE_CONFIG"
ENVIRONMENT, DOTENV = "environment", ".env"
NO_RETRY_S = 0.0
LOOPBACK = "127.0.0.1"
MAX_PORT = 65_535
SITE_PLACEHOLDER = "{site}"
RESERVED_SITES = ("bridge", "home", "site")
"""Topic levels that a site can't have, since other topics use them."""


def topic_name(value: str) -> str:
    """Check that a text can be the first levels of topics.

    Raises:
        ValueError: it can't.
    """
    if not re.fullmatch(r"[^\s/+#$\x00][^\s+#\x00]*(?<!/)", value) or "//" in value:
        raise ValueError("must be a topic without blanks, +, #, a leading $ or empty levels, such as enphase")
    return value


def _host(value: str) -> str:
    url = value if value.startswith(("http://", "https://")) else f"https://{value}"
    try:
        is_host = url.isprintable() and re.fullmatch(r"https?://[^\s/@?#]+/?", url) is not None
        host, _ = urlsplit(url).hostname or "", urlsplit(url).port  # raises where the port is none
        if re.fullmatch(r"[\d.]*\d", host):
            IPv4Address(host)
    except ValueError:
        is_host = False
    if not is_host:
        raise ValueError(
            "must be a name, an address (IPv6 in brackets), host:port or a URL such as http://192.168.1.20"
        )
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):  # unknown, or none are installed
        raise ValueError("unknown time zone; use a name such as Europe/Berlin") from None
    return value


def _period(value: float) -> float:
    if value != NO_RETRY_S and not 1 <= value <= 7 * DAY_S:
        raise ValueError("must be 0 (off) or 1 to 604800 seconds")
    return value


def _listen(value: str) -> str:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|[A-Za-z0-9._-]+):(\d{1,5})", value)
    if found is None or int(found[2]) > MAX_PORT or (found[1] and ":" not in found[1]):
        raise ValueError("must be a port such as 8080, or an address and a port such as 0.0.0.0:8080 or [::]:8080")
    return value


def _base(value: str) -> str:
    levels = [level for level in value.split("/") if level != SITE_PLACEHOLDER]
    if not levels or any(set("{}") & set(level) for level in levels):
        raise ValueError(
            f"may have nothing in braces but {SITE_PLACEHOLDER}, which must be a whole level beside another one"
        )
    return value


CONTROL_GROUPS = ("storage", "contacts", "generator", "limit", "acb", "grid")
"""The groups of values that commands can be allowed to set. `all` stands for all but `grid`, which can leave a home
without power.
"""


def _allowed(value: Any) -> Any:
    """The groups of a list, which may be a text with commas, as a text with commas in one order.

    Raises:
        ValueError: there is no such group.
    """
    if value is None:
        return None
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ValueError("must be names of groups with commas between them")
    named = {name.strip().lower() for name in given} - {"", "none"}
    if unknown := sorted(named - {*CONTROL_GROUPS, "all"}):
        raise ValueError(f"there is no group {unknown[0]!r}; there are {', '.join(CONTROL_GROUPS)} and all")
    every = {*CONTROL_GROUPS} - {"grid"} if "all" in named else set[str]()
    return ",".join(name for name in CONTROL_GROUPS if name in named | every)


def _shard(value: str) -> str:
    return str(sharding.Shard.of(value, socket.gethostname()))


def ordinary(path: Path) -> Path:
    """Check that a path leads to an ordinary file, or to none: a named pipe or a device can be waited for for ever.

    Raises:
        ValueError: it leads to something else.
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # whoever reads it says why that fails
        return path
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is no ordinary file: copy what it gives into one")
    return path


def _rare(seconds: float) -> float:
    if 0 < seconds < LEAST_RARE_S:
        raise ValueError(f"0 or at least {LEAST_RARE_S}: this is much work for the gateway")
    return seconds


LEAST_RARE_S = 900
Allow = Annotated[str, BeforeValidator(_allowed)]
File = Annotated[Path, AfterValidator(ordinary)]
Topic = Annotated[str, AfterValidator(topic_name)]
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
    """a token, pasted from Enphase's token page"""
    token_file: File | None = None
    """a file that contains such a token"""
    username: str | None = None
    """user name of an Enphase account, with which the bridge gets and renews tokens"""
    password: SecretStr | None = None
    """password of the Enphase account"""
    serial: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,32}$")] | None = None
    """serial number of the gateway; default: that of the gateway which answers"""
    tls: Literal["pin", "strict", "off"] = "pin"
    """`pin` trusts the first TLS key, and a new one with newer firmware; `strict` only the first; `off` any"""
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """name of the site in Home Assistant, and the end of the names of its meters"""
    site: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """text for `{site}` in the base topic, which is reduced to `a`-`z`, `0`-`9`, `-` and `_`; default: the name"""
    home: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """name of the home, the same for all gateways behind one grid meter; `enphase/home/<home>` adds them up"""
    grid_meter: bool = False
    """whether its meter is that of the whole home; needed only if several gateways of a home have a grid meter"""
    allow: Allow | None = None
    """what commands may set at this gateway, in place of BRIDGE_CONTROL__ALLOW"""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        account = (self.username or "", self.password.get_secret_value() if self.password else "")
        if any(re.match(r"eyJ[\w-]+\.", text) for text in account):
            raise ValueError("username or password is a token: set token to it, and neither of them")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together: set both, or neither")
        if self.home is not None and not self.home_level:
            raise ValueError("home needs at least one of the letters a to z or a digit")
        if self.grid_meter and self.home is None:
            raise ValueError("grid_meter needs home")
        return self

    @property
    def base_url(self) -> str:
        """Scheme, host and port; HTTPS unless the host is given as a URL."""
        host = self.host.rstrip("/")
        return host if host.startswith(("http://", "https://")) else f"https://{host}"

    @property
    def level(self) -> str:
        """The site as a level of a topic; empty if it has none."""
        return sharding.level(self.site or self.name or "")

    @property
    def label(self) -> str:
        """What a message to people calls the gateway: its name if it has one, with what tells it from others."""
        which = self.serial or self.host
        return f"{self.name} ({which})" if self.name else which

    @property
    def home_level(self) -> str:
        """The level in topics of the home that the gateway is a part of; empty where it is a part of none."""
        return sharding.level(self.home or "")


def homes(gateways: Iterable[GatewaySettings]) -> Mapping[str, Sequence[GatewaySettings]]:
    """The gateways of each home, by the home's level in topics."""
    found: dict[str, list[GatewaySettings]] = {}
    for gateway in gateways:
        if gateway.home is not None:
            found.setdefault(gateway.home_level, []).append(gateway)
    return found


def _check_homes(every: Iterable[GatewaySettings], mine: Collection[GatewaySettings]) -> None:
    """Check that one bridge polls a whole home, since bridges do not exchange readings.

    Raises:
        ValueError: a home has several grid meters, or only a part of it is `mine`, the gateways of this bridge.
    """
    for home, members in homes(every).items():
        if sum(gateway.grid_meter for gateway in members) > 1:
            raise ValueError(f"BRIDGE_GATEWAYS: the home {home} has more than one gateway with grid_meter")
        here = [gateway.label for gateway in members if gateway in mine]
        elsewhere = [gateway.label for gateway in members if gateway not in mine]
        if here and elsewhere:
            raise ValueError(
                f"BRIDGE_SHARD: one bridge must poll all gateways of the home {home}, but this shard has "
                f"{' and '.join(here)} and not {' and '.join(elsewhere)}: give this home a bridge of its own"
            )


class CloudSettings(Section):
    """Enphase's cloud, where tokens come from."""

    login_url: Url = "https://enlighten.enphaseenergy.com/login/login.json"
    """address for the login with an account"""
    token_url: Url = "https://entrez.enphaseenergy.com/tokens"  # noqa: S105 - an address, no token
    """address that gives tokens"""
    entrez_url: Url = "https://enlighten.enphaseenergy.com/entrez-auth-token"
    """address that is asked for a token if BRIDGE_CLOUD__TOKEN_URL gives none"""
    ca_file: File | None = None
    """certificates to trust instead of the system's"""

    @field_validator("login_url", "token_url", "entrez_url")
    @classmethod
    def _safe(cls, value: str) -> str:
        url = urlsplit(value)
        if url.scheme == "http" and url.hostname not in {"127.0.0.1", "localhost", "::1"}:
            raise ValueError("plain http would show the password to everybody: use https")
        return value


def _urls(given: str | list[Any]) -> list[str]:
    """The URLs of a list, which may be JSON or a text with commas. A comma in a password separates nothing.

    Raises:
        ValueError: an item is no text.
    """
    if isinstance(given, str) and given.lstrip().startswith("["):
        given = json.loads(given)
    if isinstance(given, str):
        given = [url.strip() for url in re.split(r",(?=\s*\w+://)", given)]
    if not all(isinstance(url, str) for url in given):
        raise ValueError("no list of texts")
    return given


def _without_user(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The URL without its user and password, and these two as fields."""
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
    # An @ after the host belongs to a password that contains a /.
    return (network or (url.scheme == "unix" and bool(url.path))) and not (
        url.query or url.fragment or "@" in url.path
    )


class MqttSettings(Section):
    """The MQTT broker."""

    url: str = "mqtt://localhost:1883"
    """`mqtt://`, `mqtts://`, `ws://`, `wss://` host and port, or `unix:///path`; with commas for a cluster"""
    username: str | None = None
    """user name at the broker"""
    password: SecretStr | None = None
    """password at the broker"""
    ca_file: File | None = None
    """certificates to trust instead of the system's"""
    cert_file: File | None = None
    """client certificate"""
    key_file: File | None = None
    """key of the client certificate"""
    base_topic: Annotated[Topic, AfterValidator(_base)] = "enphase"
    """first levels of all topics; `{site}` stands for the site of each gateway, as in `enphase/{site}`"""
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    """client id; default: the bridge makes one and keeps it"""
    protocol: Literal["5", "3.1.1"] = "5"
    """MQTT version; with `5`, the bridge uses `3.1.1` if the broker refuses `5`"""
    payload: Literal["both", "values", "json"] = "both"
    """`values` publishes a topic for each value, `json` a JSON document for each device, `both` does both"""
    heartbeat: Annotated[float, Field(ge=10, le=86_400)] = 300
    """seconds after which everything is published again"""
    rate: Annotated[float, Field(ge=0, le=100_000)] = 0
    """most messages a second, for brokers that drop messages above a limit; `0` is no limit"""
    deadband: Annotated[float, Field(ge=0, le=1000)] = 1
    """factor on the smallest change of each value that is published; `0` publishes every change"""
    repeat_site: bool = True
    """publish the powers of `site/*` and its charge with each answer, even if they have not changed"""

    @model_validator(mode="before")
    @classmethod
    def _user_in_url(cls, data: Any) -> Any:
        """Take user and password out of `mqtt://user:password@host`, because the URL is printed."""
        if not isinstance(data, Mapping) or not isinstance(data.get("url"), str | list):
            return data
        try:
            parts = [_without_user(url) for url in _urls(data["url"])]
        except ValueError:
            return {**data, "url": "unreadable"}
        users = {user for _, user in parts if user}
        if len(users) > 1:
            raise ValueError("url: all brokers must have the same user and password")
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
        """The base topic without the level for the site, for topics that belong to no gateway."""
        return "/".join(level for level in self.base_topic.split("/") if level != SITE_PLACEHOLDER)

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
    """`device` (since Home Assistant 2024.11 and openHAB 5.2), `component` for older versions, or `off`"""
    prefix: Topic = "homeassistant"
    """discovery prefix, as it is set in Home Assistant"""


SectionT = TypeVar("SectionT", bound=Section)


def with_periods(section: type[SectionT]) -> type[SectionT]:
    """Class decorator: adds the period of each source in seconds; `None` stands for the profile's period.

    Raises:
        TypeError: a source has the name of another setting of this section.
    """
    fields: dict[str, Any] = {source.value: (Period | None, None) for source in SourceName}
    if taken := fields.keys() & section.model_fields:
        raise TypeError(f"a setting and a source have the same name: {', '.join(taken)}")
    rare = Field(None, description="off unless set, and at least 900: it is much work for the gateway")
    fields[SourceName.EVENT_LIST] = (Annotated[Period, AfterValidator(_rare)] | None, rare)
    never_off = Field(None, description="it tells which gateway this is, so it can't be turned off")
    fields[SourceName.INFO] = (Annotated[Period, Field(ge=1)] | None, never_off)
    return create_model(
        section.__name__, __base__=section, __module__=section.__module__, __doc__=section.__doc__, **fields
    )


@with_periods
class PollSettings(Section):
    """Seconds between polls of each source; `0` turns one off."""

    profile: Literal["gentle", "normal", "live"] = "normal"
    """sets all periods at once; `live` polls livedata every second"""
    budget: Annotated[float, Field(ge=0.01, le=0.9)] | None = None
    """share of the gateway's time that all requests may take; default: 0.25, `live` 0.6, `gentle` 0.1"""

    def period(self, source: SourceName) -> float | None:
        """The period that is set for this source, in seconds: 0 turns it off, `None` stands for the profile's."""
        period: float | None = getattr(self, source)
        return period


class SiteSettings(Section):
    """How the site's flows are computed."""

    netting: Literal["sum", "per_phase"] = "sum"
    """how import and export are counted: `sum` nets the phases first, `per_phase` counts each phase alone"""
    third_party_pv: bool = False
    """whether solar power of another maker that has a meter (`pv3p`) counts as the site's solar power"""


class ControlSettings(Section):
    """Commands to the gateway over MQTT."""

    allow: Allow = ""
    """what commands may set: `storage`, `contacts`, `generator`, `limit`, `acb`, `grid`; `all` is all but `grid`"""

    def allowed(self, gateway: GatewaySettings) -> frozenset[str]:
        """The groups of values that commands may set at this gateway."""
        allow = self.allow if gateway.allow is None else gateway.allow
        return frozenset(filter(None, allow.split(",")))


class HttpSettings(Section):
    """Status page, health checks and metrics over HTTP."""

    listen: Listen | None = None
    """`address:port`, or a port that only this machine can reach, such as `8080`; default: nothing listens"""
    hosts: Annotated[str, Field(pattern=r"^[A-Za-z0-9.,_ -]*$")] = ""
    """more host names that browsers may use, separated by commas; IP addresses and local names always work"""

    @field_validator("listen", mode="before")
    @classmethod
    def _port_alone(cls, value: Any) -> Any:
        return f"{LOOPBACK}:{value}" if str(value).isdecimal() else value or None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on. Use it only if `listen` is set."""
        host, _, port = (self.listen or "").rpartition(":")
        return host.strip("[]"), int(port)


class LogSettings(Section):
    """Logging, to standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """least severe level that is written"""
    format: Literal["text", "json"] = "text"
    """`text` writes a line for each event, `json` a JSON object"""

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
        env_prefix=VARIABLE_PREFIX,
        env_nested_delimiter="__",
        env_file=DOTENV,
        env_ignore_empty=True,
        extra="ignore",  # other programs' lines in .env; unknown BRIDGE_ names are refused by load()
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    gateway: GatewaySettings = GatewaySettings()
    gateways: tuple[GatewaySettings, ...] = ()
    """several gateways: a JSON list of objects, each with the fields of one gateway"""
    gateways_file: Path | None = None
    """file with such a list, TOML or `.json`; it is checked every ten seconds, and changes take effect at once"""
    shard: Annotated[str, AfterValidator(_shard)] | None = None
    """the gateways that this bridge polls, such as `0/3`; `auto/3` takes the number at the end of the host name"""
    cloud: CloudSettings = CloudSettings()
    mqtt: MqttSettings = MqttSettings()
    homeassistant: HomeAssistantSettings = HomeAssistantSettings()
    poll: PollSettings = PollSettings()
    site: SiteSettings = SiteSettings()
    control: ControlSettings = ControlSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    timezone: Annotated[str, AfterValidator(_zone)] | None = None
    """time zone of the days of `energy_today`, such as `Europe/Berlin`; default: this machine's"""
    instance: Name | None = None
    """name of this bridge if several share a broker; default: none, with a shard `shard-0` and so on"""
    state_dir: Path = Field(default_factory=_state_dir)
    """folder for tokens, TLS keys and counters; default: `$STATE_DIRECTORY`, else the user's state folder"""

    @model_validator(mode="before")
    @classmethod
    def _read_gateways(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not data.get("gateways_file"):
            return data
        if {"gateway", "gateways"} & data.keys():
            raise ValueError("BRIDGE_GATEWAYS_FILE: set either the file, or BRIDGE_GATEWAY(S), not both")
        try:
            return {**data, "gateways": sharding.listed(ordinary(Path(data["gateways_file"])))}
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
            raise ValueError("BRIDGE_SHARD: each gateway needs its serial, which decides which bridge polls it")
        if SITE_PLACEHOLDER in self.mqtt.base_topic:
            self._check_sites()
        _check_homes(self.every_gateway, self.all_gateways)
        if self.mqtt.payload == "json" and self.homeassistant.discovery != "off":
            raise ValueError(
                "BRIDGE_MQTT__PAYLOAD: json has no value topics for Home Assistant: set it to both, "
                "or BRIDGE_HOMEASSISTANT__DISCOVERY to off"
            )
        return self

    def _check_sites(self) -> None:
        for gateway in self.every_gateway:
            if not gateway.level:
                raise ValueError(
                    f"BRIDGE_MQTT__BASE_TOPIC: {SITE_PLACEHOLDER} needs a name or a site for {gateway.host}"
                )
            if gateway.level in RESERVED_SITES:
                raise ValueError(f"BRIDGE_GATEWAYS: the site of {gateway.host} can't be called {gateway.level}")

    @property
    def every_gateway(self) -> tuple[GatewaySettings, ...]:
        """All configured gateways, including those that other bridges poll."""
        several = self.gateways or self.gateways_file is not None
        return self.gateways if several else (self.gateway,)

    @property
    def all_gateways(self) -> tuple[GatewaySettings, ...]:
        """The gateways that this bridge polls."""
        if self.shard is None:
            return self.every_gateway
        mine = sharding.Shard.of(self.shard)
        return tuple(gateway for gateway in self.every_gateway if mine.owns(gateway.serial or ""))

    @property
    def own_name(self) -> str | None:
        """The name that tells this bridge from others at its broker; `None` if it has none."""
        return self.instance or (f"shard-{self.shard.partition('/')[0]}" if self.shard else None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic passes it by name
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = InitSettingsSource(settings_cls, _toml())
        return (
            init_settings,
            _Environment(settings_cls),
            _DotEnv(settings_cls),
            _Secrets(file_secret_settings),
            toml,
        )


def _toml() -> dict[str, Any]:
    """The content of the TOML file. Empty texts count as not set, as in the environment."""
    file = config_file()
    if file is None or not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8-sig")  # some editors write a byte order mark, which TOML forbids
    known = {name.removeprefix(VARIABLE_PREFIX).rpartition("__")[2].lower() for name in names()}
    found: dict[str, Any] = _filled(tomllib.loads(text), known)
    return found


def _filled(data: Any, known: Collection[str]) -> Any:
    """Remove the empty texts of known settings. Unknown names stay, so that they are reported."""
    if isinstance(data, Mapping):
        return {key: _filled(item, known) for key, item in data.items() if item != "" or key not in known}
    return [_filled(item, known) for item in data] if isinstance(data, list) else data


class _Environment(EnvSettingsSource):
    """Environment variables. A section that is not JSON is named in the error, without its value."""

    def prepare_field_value(
        self,
        field_name: str,
        field: FieldInfo,
        value: Any,
        value_is_complex: bool,
    ) -> Any:
        with suppress(ValueError, RecursionError):
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        raise BadSetting(f"{VARIABLE_PREFIX}{field_name.upper()}: not valid JSON")


class _DotEnv(_Environment, DotEnvSettingsSource):
    """The file `.env`."""


class _Secrets(_Environment, NestedSecretsSettingsSource):
    """Files with the name of a variable, in lower case. Other files in the same folder are not opened."""

    def __init__(self, source: PydanticBaseSettingsSource) -> None:
        folders = secret_folders()[::-1]  # with pydantic the last one wins
        super().__init__(source, secrets_dir=folders, secrets_dir_missing="ok", secrets_nested_delimiter="__")

    @classmethod
    def load_secrets(cls, path: Path) -> dict[str, str]:
        ours = (
            file
            for file in sorted(path.iterdir())
            if file.name.upper().startswith(VARIABLE_PREFIX) and file.is_file()
        )
        return {file.name: file.read_text(encoding="utf-8-sig", errors="replace").strip() for file in ours}


def config_file() -> Path | None:
    """The TOML file that the environment or `.env` names; `None` if they name none."""
    found = os.environ.get(CONFIG_VARIABLE) or DotEnvSettingsSource(Settings).env_vars.get(CONFIG_VARIABLE.lower())
    return Path(found) if found else None


def secret_folders() -> list[Path]:
    """The folders of secret files: systemd's credentials first, then a container's secrets."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    folders = [Path(credentials)] if credentials else []
    return [folder for folder in (*folders, Path("/run/secrets")) if folder.is_dir()]


def found() -> dict[str, list[str]]:
    """The names of the settings that each place sets, without values. The place that wins comes first."""
    file = config_file()
    places: dict[str, Iterable[str]] = {ENVIRONMENT: os.environ, DOTENV: DotEnvSettingsSource(Settings).env_vars}
    places |= {str(folder): _Secrets.load_secrets(folder) for folder in secret_folders()}
    places |= {str(file): _flat(_toml())} if file else {}
    known = {*names()}
    return {place: sorted({name.upper() for name in named} & known) for place, named in places.items()}


def nothing_set() -> str:
    """What to say where no place sets anything, as in another folder than that of `.env`; empty otherwise."""
    if any(found().values()):
        return ""
    return (
        f"no setting in the environment or in {Path(DOTENV).absolute()}; `iqgateway2mqtt setup` asks for them. "
        f"Until then: {GatewaySettings().host} and {MqttSettings().url}"
    )


def _flat(data: Mapping[str, Any], prefix: str = VARIABLE_PREFIX) -> Iterator[str]:
    """The names of the settings in a TOML file, as environment variables."""
    for key, value in data.items():
        yield from _flat(value, f"{prefix}{key}__") if isinstance(value, Mapping) else (f"{prefix}{key}",)


def names(model: type[BaseModel] = Settings, prefix: str = VARIABLE_PREFIX) -> Iterator[str]:
    """The names of all environment variables that set something, except `BRIDGE_CONFIG`."""
    for key, field in model.model_fields.items():
        name = f"{prefix}{key.upper()}"
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names(field.annotation, f"{name}__")


def load(**overrides: Any) -> Settings:
    """Read the settings from all places.

    Raises:
        BadSetting: a setting can't be used. The text names all of them in one line, without their values.
    """
    return _explained(lambda: _load(overrides))


def reread(settings: Settings) -> Settings:
    """The same settings with the present content of the file of gateways.

    Raises:
        BadSetting: the file can't be used.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set - {"gateways"}}
    return _explained(lambda: Settings(**given))


SURROGATE = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes in the environment that are not UTF-8."""


QUOTED = re.compile(r"(['\"]).+\1")
"""What is left of a value in quotes where nobody has removed them."""


def _load(overrides: Mapping[str, Any]) -> Settings:
    known = {*names()}
    for name, value in os.environ.items():
        if name.upper().startswith(VARIABLE_PREFIX) and not value.isascii() and SURROGATE.search(value):
            raise BadSetting(f"{name}: not UTF-8 text")
        if name.upper() in known and QUOTED.fullmatch(value.strip()):
            raise BadSetting(
                f"{name}: has quotes around its value, which `docker run --env-file` keeps: remove them there, "
                f"or put the value in a secret file"
            )
    _refuse_unreadable_lines()
    _refuse_unknown()
    return Settings(**overrides)


def _explained(work: Callable[[], Settings]) -> Settings:
    try:
        return work()
    except ValidationError as error:
        problem = "; ".join(_explain(item) for item in error.errors())
    except SettingsError as error:  # only its own text: that of its cause may hold the value
        problem = str(error)
    except tomllib.TOMLDecodeError as error:
        problem = f"{CONFIG_VARIABLE}: not valid TOML ({error})"
    except UnicodeDecodeError:
        problem = f".env or the file of {CONFIG_VARIABLE}: not UTF-8 text"
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
        if isinstance(error, PermissionError):
            problem += f"; let user {os.geteuid()} read it"
    raise BadSetting(problem)  # outside of the handlers: what they handled may hold a secret


def _explain(error: ErrorDetails) -> str:
    where, kind = error["loc"], error["type"]
    text = str(error["ctx"]["error"]) if kind == "value_error" else error["msg"]
    if not where:
        return text
    name = VARIABLE_PREFIX + "__".join(_shown(str(part)) for part in where)
    if kind == "extra_forbidden":
        return _unknown(name)
    if kind == "model_type":
        return f"{name}: must be a section with settings of its own, such as [{where[0]}] in TOML"
    return f"{name}: {text[:1].lower()}{text[1:]}"


def _shown(part: str) -> str:
    """A part of a name in capitals, as in the environment. If it has capitals already, these are the mistake."""
    return part.upper() if part.islower() else part


def _unknown(name: str) -> str:
    if name.upper() in {*names()}:
        return f"{name}: must be written in small letters here"
    near = " or ".join(VARIABLE_PREFIX + setting for setting in _nearest(name.upper()))
    return f"{name}: no such setting" + (f"; did you mean {near}?" if near else "")


OTHER_SECTIONS = {
    **dict.fromkeys(("ENVOY", "ENPHASE", "IQ", "IQGATEWAY", "GATEWAYS"), "GATEWAY"),
    **dict.fromkeys(("BROKER", "MOSQUITTO"), "MQTT"),
    **dict.fromkeys(("HA", "HASS"), "HOMEASSISTANT"),
    **dict.fromkeys(("WEB", "METRICS"), "HTTP"),
    **dict.fromkeys(("LOGGING", "LOGGER"), "LOG"),
}
"""Our section for names that other programs give to one."""
OTHER_NAMES = {
    "GATEWAY__HOST": "ADDRESS HOSTNAME IP IP_ADDRESS URL",
    "GATEWAY__TOKEN": "ACCESS_TOKEN API_KEY JWT",
    "GATEWAY__USERNAME": "ACCOUNT EMAIL LOGIN USER USER_NAME",
    "GATEWAY__PASSWORD": "PASS PASSWD PWD",
    "GATEWAY__SERIAL": "SERIAL_NUMBER SERIALNUMBER SN",
    "MQTT__URL": "ADDRESS BROKER HOST HOSTNAME IP PORT SERVER SSL TLS URI",
    "MQTT__USERNAME": "LOGIN USER USER_NAME",
    "MQTT__PASSWORD": "PASS PASSWD PWD",
    "MQTT__BASE_TOPIC": "PREFIX ROOT TOPIC TOPIC_PREFIX",
    "MQTT__CA_FILE": "CA CA_CERT",
    "HOMEASSISTANT__PREFIX": "DISCOVERY_PREFIX DISCOVERY_TOPIC",
    "POLL__PROFILE": "INTERVAL PERIOD",
    "HTTP__LISTEN": "ADDRESS HOST PORT",
    "LOG__LEVEL": "DEBUG VERBOSE",
    "TIMEZONE": "TIME_ZONE TZ",
    "STATE_DIR": "DATA_DIR STATE_FOLDER",
    "CONFIG": "CONFIG_FILE TOML",
}
"""What other programs call a setting: our settings without the prefix, their names without the section, too."""


def _nearest(name: str) -> Sequence[str]:
    """The settings that an unknown name may stand for, at most two and without the prefix."""
    import difflib  # noqa: PLC0415 - 0.2 MB, needed only after a mistake

    name = name.removeprefix(VARIABLE_PREFIX).replace("HOME_ASSISTANT", "HOMEASSISTANT")
    first, _, rest = re.sub("_+", "_", re.sub(r"^GATEWAYS__\d+", "GATEWAY", name)).partition("_")
    known = [setting.removeprefix(VARIABLE_PREFIX) for setting in names()]
    section = OTHER_SECTIONS.get(first, first) + "__" if rest else ""
    mine = [setting for setting in known if section and setting.startswith(section)]
    wanted, among = (rest, mine) if mine else (name, [*known, "CONFIG"])
    by_name = {setting: setting.rpartition("__")[2] for setting in among}
    near = [setting for setting in among if by_name[setting] == wanted] or [
        setting for setting in among if wanted in OTHER_NAMES.get(setting, "").split()
    ]
    if not near and mine:
        close = difflib.get_close_matches(wanted, by_name.values(), n=1, cutoff=0.6)
        near = [setting for setting in mine if by_name[setting] in close]
    return near[:2] or difflib.get_close_matches(name, known, n=1, cutoff=0.85 if mine else 0.75)


def _refuse_unreadable_lines() -> None:
    """Refuse a `.env` with a line that is no assignment: its setting would be missing, perhaps others too."""
    file = Path(DOTENV)
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as text:
        for found in parse_stream(text):
            is_bare = (
                found.key is not None and found.value is None and found.key.upper().startswith(VARIABLE_PREFIX)
            )
            if found.error or is_bare:
                given = found.original.string
                line = found.original.line + given[: len(given) - len(given.lstrip())].count("\n")
                raise BadSetting(
                    f"{DOTENV}, line {line}: must be NAME=value; quotes that are opened must be closed"
                )


def _refuse_short_names(folder: Path) -> None:
    """Refuse a secret file with the name of a setting but without `BRIDGE_`: it would be ignored."""
    known = {*names()}
    for file in sorted(folder.iterdir()):
        name = f"{VARIABLE_PREFIX}{file.name}"
        if "__" in name and name.upper() in known:
            raise BadSetting(f"{file}: must be called {name.lower()}")


def _refuse_unknown() -> None:
    file = config_file()
    if file and not file.is_file():
        raise BadSetting(f"{CONFIG_VARIABLE}: there is no file {file}")
    for folder in secret_folders():
        _refuse_short_names(folder)
    secrets = (name for folder in secret_folders() for name in _Secrets.load_secrets(folder))
    elsewhere = (name.upper() for name in (*os.environ, *DotEnvSettingsSource(Settings).env_vars, *secrets))
    unknown = {name for name in elsewhere if name.startswith(VARIABLE_PREFIX)} - {*names(), CONFIG_VARIABLE}
    sections = _toml().keys() - Settings.model_fields.keys()
    if unknown := unknown | {VARIABLE_PREFIX + _shown(section) for section in sections}:
        raise BadSetting("; ".join(_unknown(name) for name in sorted(unknown)))
