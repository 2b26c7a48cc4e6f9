"""`/info`: the only XML, and the only answer that a stranger in the network could forge before TLS is pinned."""

from datetime import UTC, datetime

import pytest
from samples import NOW, SERIAL, THREE, UNKNOWN, documents_of, parse, publish, values

from bridge.model import BadAnswer, Facts

DEVICE_XML = f"<sn>{SERIAL}</sn><pn>800-00654-r06</pn><software>D8.3.5169</software>"
TOPICS = {
    "gateway/serial_number": SERIAL,
    "gateway/part_number": "800-00654-r06",
    "gateway/firmware": "D8.3.5169",
}


def info(inner: str = "", device: str = DEVICE_XML, head: str = "<?xml version='1.0' encoding='UTF-8'?>") -> bytes:
    return f"{head}<envoy_info><device>{device}</device>{inner}</envoy_info>".encode()


def test_facts() -> None:
    facts = parse("info", info(f"<time>{int(NOW) + 90}</time>"), UNKNOWN, NOW).facts
    assert facts == Facts(SERIAL, "D8.3.5169", "800-00654-r06", 90.0, None)


def test_without_a_clock_ours_is_right() -> None:
    for time in ("", "<time>0</time>", "<time>soon</time>"):
        facts = parse("info", info(time), UNKNOWN, NOW).facts
        assert facts is not None
        assert facts.clock_offset == 0


def test_what_meters_taught_is_kept_for_the_same_gateway_only() -> None:
    same = parse("info", info(), THREE).facts
    other = parse("info", info(device="<sn>122125067700</sn>"), THREE).facts
    assert same is not None
    assert other is not None
    assert (same.meters, other.meters) == (THREE.meters, None)
    assert (other.serial, other.firmware, other.part_number) == ("122125067700", "", None)


def test_old_firmware_says_less() -> None:
    assert values("info", info()) == TOPICS


@pytest.mark.parametrize(
    "head",
    [
        "",
        '<?xml version="1.0"?>\n',
        "<?xml version='1.0' encoding='UTF-8' standalone='yes'?>",
        "\ufeff<?xml version='1.0' encoding=\"UTF-8\"?><!-- a comment -->",
    ],
)
def test_heads_and_quotes(head: str) -> None:
    assert values("info", info(head=head)) == TOPICS


def test_blanks_around_it_are_forgiven() -> None:
    assert values("info", b"\r\n  " + info() + b"\n\n") == TOPICS


@pytest.mark.parametrize("encoding", ["UTF-16", "ISO-8859-1", "US-ASCII", "windows-1252", "ISO-8859-4"])
def test_encodings(encoding: str) -> None:
    text = info(head=f"<?xml version='1.0' encoding='{encoding}'?>").decode()
    assert values("info", text.encode(encoding)) == TOPICS


@pytest.mark.parametrize(
    "encoding", ["nonsense", "utf-7", "idna", "hex", "base64", "undefined", "UTF-32", "Shift_JIS"]
)
def test_encodings_that_are_none(encoding: str) -> None:
    with pytest.raises(BadAnswer):
        parse("info", info(head=f"<?xml version='1.0' encoding='{encoding}'?>"))


def test_wrong_bytes() -> None:
    with pytest.raises(BadAnswer):
        parse("info", info().replace(b"</sn>", b"\xff</sn>"))
    with pytest.raises(BadAnswer):
        parse("info", info(device=f"{DEVICE_XML}<euaid>\x00</euaid>"))


def test_attributes_blanks_and_pieces_of_text() -> None:
    device = f"""
      <sn type="a" kind='b'>
         {SERIAL}
      </sn>
      <pn><![CDATA[800-00654]]>-r06</pn><software>D8.3.<!-- no -->5169</software>
      <euaid>4c8675 &amp; more</euaid><apiver/><seqnum></seqnum>"""
    assert values("info", info(device=device)) == TOPICS | {
        "gateway/euaid": "4c8675 & more",
        "gateway/api_version": "None",
        "gateway/sequence": "None",
    }


def test_the_build_id_loses_its_line_breaks() -> None:
    found = values("info", info("<build_info><build_id>\n ec2-user\n master:pkg </build_id></build_info>"))
    assert found["gateway/build_id"] == "ec2-user master:pkg"


def test_a_bad_field_costs_only_itself() -> None:
    bad = "<imeter>perhaps</imeter><apiver>one</apiver><seqnum>3</seqnum>"
    inner = "<web-tokens>true</web-tokens><build_info><build_time_gmt>soon</build_time_gmt></build_info>"
    parsed = parse("info", info(inner, device=DEVICE_XML + bad))

    assert values("info", info(inner, device=DEVICE_XML + bad)) == TOPICS | {
        "gateway/sequence": "3",
        "gateway/web_tokens": "ON",
    }
    assert [problem.partition(":")[0] for problem in parsed.problems] == [
        "Info.api_version",
        "Info.metered",
        "Info.build_time",
    ]


def test_times() -> None:
    found = values(
        "info", info("<time>1658403712</time><build_info><build_time_gmt>0</build_time_gmt></build_info>")
    )
    assert found["gateway/time"] == datetime(2022, 7, 21, 11, 41, 52, tzinfo=UTC).isoformat()
    assert found["gateway/build_time"] == "None"


@pytest.mark.parametrize(
    "device", ["", "<sn/>", "<sn></sn>", "<sn>Unknown</sn>", "<sn>***</sn>", "<sn><b>1</b></sn>"]
)
def test_a_gateway_has_a_serial_number(device: str) -> None:
    with pytest.raises(BadAnswer, match="serial number"):
        parse("info", info(device=device))


def test_a_serial_number_is_a_topic_level_in_lower_case() -> None:
    facts = parse("info", info(device="<sn>AB12cd</sn>")).facts
    assert facts is not None
    assert facts.serial == "ab12cd"


@pytest.mark.parametrize("serial", ["AB/12+#", "1" * 33, "1" * 70_000, "12 34", "1234\ufffd", "\u0661\u0662", "-"])
def test_what_is_no_serial_number(serial: str) -> None:
    """The refusal is one short line, however long the text is."""
    with pytest.raises(BadAnswer, match="not from a gateway: its serial number is '") as refusal:
        parse("info", info(device=f"<sn>{serial}</sn>"))
    assert len(str(refusal.value)) < 120


def test_texts_are_short_and_show_only_what_they_say() -> None:
    """Characters that change the direction of a text could make a page or a log say something else."""
    inner = "<build_info><build_id>a\u202eb\u2066c\u200bd\x85e\x9bf</build_id></build_info>"
    inner += f"<package name='app'><version>{'7' * 300}\u202e</version></package>"
    messages = publish(
        "info", parse("info", info(inner, device=DEVICE_XML + f"<euaid>{'x' * 300}</euaid>")).readings
    )
    document = documents_of(messages)["gateway"]
    assert document["build_id"] == "abcd ef"
    assert document["euaid"] == "x" * 255
    assert document["packages"] == {"app": {"version": "7" * 255}}


# Packages

PACKAGE = '<package name="App One"><pn>500-00002-r01</pn><version>07.04.22</version><build>d153a8</build></package>'


def packages(inner: str) -> object:
    messages = publish("info", parse("info", info(inner)).readings)
    assert not any("packages" in message.topic for message in messages)
    return documents_of(messages)["gateway"].get("packages")


def test_packages_stand_in_the_document() -> None:
    rest = "<package name='kernel'><version>\n 04.04 </version><other>x</other></package>"
    assert packages(PACKAGE + rest) == {
        "app-one": {"part_number": "500-00002-r01", "version": "07.04.22", "build": "d153a8"},
        "kernel": {"version": "04.04"},
    }


@pytest.mark.parametrize(
    "inner",
    [
        "",
        "<package/>",
        "<package><pn>1</pn></package>",
        "<package name='***'><pn>1</pn></package>",
        "<packages>text</packages>",
        "<packages><text>1</text></packages>",
    ],
)
def test_what_is_no_package(inner: str) -> None:
    assert packages(inner) is None


def test_a_package_of_text_only() -> None:
    assert packages("<package name='a'>text</package>" + PACKAGE) == {
        "a": {},
        "app-one": {"part_number": "500-00002-r01", "version": "07.04.22", "build": "d153a8"},
    }


# What is not from a gateway

BOMB = """<?xml version="1.0"?><!DOCTYPE envoy_info [
<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
]>"""


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (info(head=BOMB, device="<sn>&c;</sn>"), "document type"),
        (info(head='<!DOCTYPE envoy_info SYSTEM "file:///etc/passwd">'), "document type"),
        (info(head="<!DOCTYPE envoy_info>"), "document type"),
        (info("<a>" * 1000 + "</a>" * 1000), "nested too deeply"),
        (info("<a>" * 100_000), "nested too deeply"),
        (info(device="<sn>&unknown;</sn>"), "not from a gateway"),
        (b"<envoy_info/>", "not from a gateway"),
        (b"<envoy_info>text</envoy_info>", "not from a gateway"),
        (b"<other><envoy_info><device><sn>1</sn></device></envoy_info></other>", "not from a gateway"),
        (info() + b"<more/>", "not from a gateway"),
        (info().replace(b"</device>", b"</other>"), "not from a gateway"),
    ],
)
def test_what_is_not_from_a_gateway(answer: bytes, why: str) -> None:
    with pytest.raises(BadAnswer, match=why):
        parse("info", answer)


@pytest.mark.parametrize(
    "inner", ["<build_info/>", "<build_info>text</build_info>", "<device>text</device>", "<time/>"]
)
def test_text_where_elements_are_expected(inner: str) -> None:
    found = values("info", info(inner))
    assert found.items() >= TOPICS.items()


def test_the_first_of_two_equal_elements_counts() -> None:
    assert values("info", info("<device><sn>666</sn></device>")) == TOPICS


def test_a_byte_that_is_no_utf_8_costs_only_its_character() -> None:
    """Without /info the gateway could not be used at all."""
    given = info("<build_info><build_id>gr\u00fcn</build_id></build_info>")
    assert "gr\u00fcn".encode() in given
    found = values("info", given.replace("\u00fc".encode(), b"\xfc"))
    assert found["gateway/build_id"] == "gr\ufffdn"
    assert found["gateway/serial_number"] == TOPICS["gateway/serial_number"]
