"""Settings: the file, the environment, and errors with their place."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

import tests.support  # noqa: F401
from cortex.cli import up
from cortex.cli.exits import Failed
from cortex.platform.settings import Agent, DeclaredDevice, Eviction, Gateway, Log, Redis, Settings, SettingsError
from cortex.platform.settings_file import encode_env, load, read

DEFAULTS = replace(Settings(), models_config="/etc/cortex/models.toml")


def settings(text: str = "", **env: str) -> Settings:
    return read(text, file="cortex.toml", folder="/etc/cortex", env=env)[0]


def problems(text: str = "", **env: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings(text, **env)
    return str(caught.value).splitlines()


def test_every_key_has_a_default() -> None:
    assert settings() == DEFAULTS


def test_a_file_overrides_only_the_keys_that_it_has() -> None:
    text = """
        models_config = "fleet/models.toml"
        [gateway]
        listen = "0.0.0.0:31313"
        [eviction]
        strategy = "priority"
        [redis]
        url = "redis://db:6379/1"
        [agent]
        name = "beast"
        labels = ["fast"]
        heartbeat_s = 1
        [[agent.devices]]
        name = "RTX 5090"
        vram_mb = 32607
        [[agent.devices]]
        name = "cpu"
        vram_mb = 64000
        kind = "cpu"
    """

    assert settings(text) == Settings(
        gateway=Gateway(listen="0.0.0.0:31313"),
        eviction=Eviction(strategy="priority"),
        redis=Redis(url="redis://db:6379/1"),
        agent=Agent(
            name="beast",
            labels=("fast",),
            heartbeat_s=1.0,
            devices=(
                DeclaredDevice(name="RTX 5090", vram_mb=32607),
                DeclaredDevice(name="cpu", vram_mb=64000, kind="cpu"),
            ),
        ),
        models_config="/etc/cortex/fleet/models.toml",
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("models.toml", "/etc/cortex/models.toml"),
        ("./fleet.toml", "/etc/cortex/fleet.toml"),
        ("/srv/models.toml", "/srv/models.toml"),
    ],
)
def test_a_relative_catalogue_is_resolved_from_the_files_folder(written: str, expected: str) -> None:
    assert settings(f'models_config = "{written}"').models_config == expected


def test_neurons_of_a_rust_systems_file_are_ignored_with_a_note() -> None:
    text = '[[neurons]]\nname = "beast"\nendpoint = "http://beast:13131"'

    record, notes = read(text, file="cortex.toml", folder="/etc/cortex", env={})

    assert record == DEFAULTS
    assert notes == ["cortex.toml: [[neurons]] is not needed: agents register themselves"]


def test_the_default_name_is_the_host_name() -> None:
    assert settings(CORTEX_AGENT__NAME="beast").host_name == "beast"
    assert settings().host_name


# The environment.


@pytest.mark.parametrize(
    ("name", "value", "section", "key", "expected"),
    [
        ("CORTEX_GATEWAY__LISTEN", "0.0.0.0:80", "gateway", "listen", "0.0.0.0:80"),
        ("CORTEX_GATEWAY__MAX_BODY_MB", "8", "gateway", "max_body_mb", 8),
        ("CORTEX_EVICTION__STRATEGY", "priority", "eviction", "strategy", "priority"),
        ("CORTEX_REDIS__URL", "redis://db", "redis", "url", "redis://db"),
        ("CORTEX_REDIS_URL", "redis://db", "redis", "url", "redis://db"),
        ("CORTEX_AGENT__NAME", "123", "agent", "name", "123"),
        ("CORTEX_AGENT__LABELS", '["a", "b"]', "agent", "labels", ("a", "b")),
        ("CORTEX_AGENT__KEEP_WORKERS", "false", "agent", "keep_workers", False),
        ("CORTEX_AGENT__HEARTBEAT_S", "0.5", "agent", "heartbeat_s", 0.5),
        (
            "CORTEX_AGENT__DEVICES",
            '[{"name": "a", "vram_mb": 8}]',
            "agent",
            "devices",
            (DeclaredDevice(name="a", vram_mb=8),),
        ),
    ],
)
def test_a_variable_overrides_a_key(name: str, value: str, section: str, key: str, expected: object) -> None:
    assert getattr(getattr(settings(**{name: value}), section), key) == expected


def test_the_environment_overrides_the_file_key_by_key() -> None:
    text = '[agent]\nname = "file"\nlisten = "0.0.0.0:1"'

    agent = settings(text, CORTEX_AGENT__NAME="variable").agent

    assert (agent.name, agent.listen) == ("variable", "0.0.0.0:1")


def test_the_log_level_has_a_short_variable() -> None:
    assert settings('[log]\nformat = "json"', CORTEX_LOG="DEBUG").log == Log(level="debug", format="json")
    assert "CORTEX_LOG" in problems(CORTEX_LOG="loud")[0]


def test_a_variable_can_set_the_catalogue() -> None:
    assert settings(CORTEX_MODELS_CONFIG="/srv/m.toml").models_config == "/srv/m.toml"


@pytest.mark.parametrize("name", ["PATH", "CORTEX_URL", "CORTEX_CONFIG", "XCORTEX_AGENT__NAME"])
def test_other_variables_are_ignored(name: str) -> None:
    assert settings(**{name: "whatever"}) == DEFAULTS


# Refusals.

REFUSED = {
    "not TOML": ("a =", ["cortex.toml: is not TOML: Invalid value (at end of document)"]),
    "an unknown section": (
        "[gatway]\nlisten = ''",
        ["cortex.toml:1: unknown key 'gatway'; did you mean 'gateway'?"],
    ),
    "an unknown key at the top": (
        'models = "m.toml"',
        ["cortex.toml:1: unknown key 'models'; did you mean 'models_config'?"],
    ),
    "an unknown key": (
        "[gateway]\n\nlistn = ''",
        ["cortex.toml:3: unknown key 'gateway.listn'; did you mean 'listen'?"],
    ),
    "a wrong type": (
        "[gateway]\nlisten = 31313",
        ["cortex.toml:2: gateway.listen: Expected `str`, got `int`"],
    ),
    "a wrong choice": (
        "[eviction]\nstrategy = 'random'",
        ["cortex.toml:2: eviction.strategy: Invalid enum value 'random'"],
    ),
    "a negative number": (
        "[agent]\nreserve_mb = -1",
        ["cortex.toml:2: agent.reserve_mb: Expected `int` >= 0"],
    ),
    "a heart that does not beat": (
        "[agent]\nheartbeat_s = 0",
        ["cortex.toml:2: agent.heartbeat_s: Expected `float` > 0.0"],
    ),
    "seconds without end": (
        "[gateway]\ndrain_s = inf",
        ["cortex.toml:2: gateway.drain_s: Expected `float` <= 1000000000.0"],
    ),
    "an origin with a path": (
        "[gateway]\ncors_origins = ['*', 'https://app.example/']",
        [
            "cortex.toml:2: gateway.cors_origins: Expected an origin such as `https://app.example`, without a path, "
            "or `*` - at `$[1]`"
        ],
    ),
    "a root path that is the router's own": (
        "[gateway]\nroot_path = '/v1'",
        [
            "cortex.toml:2: gateway.root_path: Expected a path such as `/cortex`, without a slash at the end, which is "
            "none of the router's own"
        ],
    ),
    "a section that is none": ("gateway = 3", ["cortex.toml:1: gateway: Expected `object`, got `int`"]),
    "an unknown key of the second device": (
        "[[agent.devices]]\nname = 'a'\nvram_mb = 1\n[[agent.devices]]\nname = 'b'\nvram_mb = 1\ntype = 'gpu'",
        ["cortex.toml:7: unknown key 'agent.devices.type'; did you mean 'name'?"],
    ),
    "a device without a size": (
        "[agent]\nname = 'a'\n[[agent.devices]]\nname = 'a'",
        ["cortex.toml:3: agent.devices: Object missing required field `vram_mb` - at `$[0]`"],
    ),
    "devices that are none": (
        "[agent]\ndevices = ['a']",
        ["cortex.toml:2: agent.devices: Expected `object`, got `str` - at `$[0]`"],
    ),
    "a catalogue in the home of an unknown user": (
        "models_config = '~no-such-user/m.toml'",
        ["cortex.toml: models_config: Could not determine home directory."],
    ),
    "all at once": (
        "[gateway]\nlisten = 1\nlistn = 2\n[redis]\nurl = 3",
        [
            "cortex.toml:2: gateway.listen: Expected `str`, got `int`",
            "cortex.toml:3: unknown key 'gateway.listn'; did you mean 'listen'?",
            "cortex.toml:5: redis.url: Expected `str`, got `int`",
        ],
    ),
}


@pytest.mark.parametrize(
    "path", ["cortex", "/", "/cortex/", "//x", "/a/../b", "/a b", "/a%2F", "/admin/x", "/status", "/api"]
)
def test_a_root_path_that_a_proxy_cannot_serve_is_refused(path: str) -> None:
    assert problems(CORTEX_GATEWAY__ROOT_PATH=path)


@pytest.mark.parametrize("path", ["", "/cortex", "/a/b.c/~d", "/v1x", "/statuspage"])
def test_a_root_path_has_any_segments_that_are_not_the_routers_own(path: str) -> None:
    assert settings(CORTEX_GATEWAY__ROOT_PATH=path).gateway.root_path == path


@pytest.mark.parametrize(
    "origin", ["", "app.example", "https://", "https://A.example", "https://a/b", "null", "https://*.a b"]
)
def test_what_no_browser_sends_as_an_origin_is_refused(origin: str) -> None:
    assert problems(CORTEX_GATEWAY__CORS_ORIGINS=json.dumps([origin]))


@pytest.mark.parametrize(
    "origin", ["*", "http://[::1]:3000", "http://localhost:3000", "chrome-extension://abc", "tauri://localhost"]
)
def test_an_origin_has_a_scheme_and_a_host(origin: str) -> None:
    assert settings(CORTEX_GATEWAY__CORS_ORIGINS=json.dumps([origin])).gateway.cors_origins == (origin,)


@pytest.mark.parametrize(("text", "output"), REFUSED.values(), ids=REFUSED)
def test_an_error_has_the_line_and_the_nearest_key(text: str, output: list[str]) -> None:
    assert problems(text) == output


@pytest.mark.parametrize(
    ("name", "value", "output"),
    [
        ("CORTEX_GATEWAY__LISTN", "", "CORTEX_GATEWAY__LISTN: no such setting; did you mean 'listen'?"),
        ("CORTEX_GATWAY__LISTEN", "", "CORTEX_GATWAY__LISTEN: no such setting; did you mean 'gateway'?"),
        ("CORTEX_GATEWAY__LISTEN__PORT", "1", "CORTEX_GATEWAY__LISTEN__PORT: no such setting"),
        ("CORTEX_AGENT__RESERVE_MB", "-1", "CORTEX_AGENT__RESERVE_MB: Expected `int` >= 0"),
        ("CORTEX_AGENT__KEEP_WORKERS", "yes", "CORTEX_AGENT__KEEP_WORKERS: JSON is malformed: "),
        ("CORTEX_AGENT__LABELS", "quick", "CORTEX_AGENT__LABELS: JSON is malformed: "),
        ("CORTEX_EVICTION__STRATEGY", "mru", "CORTEX_EVICTION__STRATEGY: Invalid enum value 'mru'"),
        ("CORTEX_AGENT__RESERVE_MB", "\udcff", "CORTEX_AGENT__RESERVE_MB: JSON is malformed: "),
    ],
)
def test_an_invalid_variable_is_an_error_with_its_name(name: str, value: str, output: str) -> None:
    assert [line[: len(output)] for line in problems(**{name: value})] == [output]


def test_errors_of_file_and_environment_are_reported_together() -> None:
    output = problems("gateway = 3", CORTEX_GATEWAY__LISTEN="0.0.0.0:1", CORTEX_AGENT__NAM="a")

    assert output == [
        "cortex.toml:1: gateway: Expected `object`, got `int`",
        "CORTEX_AGENT__NAM: no such setting; did you mean 'name'?",
    ]


@given(st.text(alphabet="abm[]{}=\"'\\\n\t .,#-_019e+é\x00", max_size=60), st.text(max_size=10))
@example("agent = " + "[" * 3000, "")
@example("agent = " + "9" * 5000, "")
def test_any_text_gives_settings_or_a_settings_error(text: str, value: str) -> None:
    try:
        assert settings(text, CORTEX_AGENT__RESERVE_MB=value)
    except SettingsError as error:
        assert str(error)


# Files and child processes.


def test_a_files_folder_is_that_of_its_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "cortex.toml"
    path.write_text("[gateway]\nlisten = '0.0.0.0:1'")

    result, notes = load(path, {})

    assert result.gateway.listen == "0.0.0.0:1"
    assert result.models_config == str(tmp_path / "models.toml")
    assert notes == []


def test_without_a_file_all_settings_are_defaults() -> None:
    assert load(None, {})[0].gateway == Gateway()


@pytest.mark.parametrize("content", [None, b"\xff\xfa"])
def test_an_unreadable_file_is_an_error_with_its_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cortex.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsError, match=r"cortex\.toml: cannot be read"):
        load(path, {})


AGENTS = st.builds(
    Agent,
    name=st.text(max_size=5),
    labels=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    reserve_mb=st.integers(0, 2**53),
    heartbeat_s=st.floats(0.001, 1e9),
    keep_workers=st.booleans(),
    devices=st.lists(
        st.builds(DeclaredDevice, name=st.text(max_size=5), vram_mb=st.integers(1, 2**53)), max_size=2
    ).map(tuple),
)


@given(AGENTS, st.builds(Gateway, listen=st.text(max_size=9), drain_s=st.floats(0, 1e9)))
def test_encoded_settings_are_equal_in_a_child_process(agent: Agent, gateway: Gateway) -> None:
    ours = replace(DEFAULTS, agent=agent, gateway=gateway, token_file="/run/token")

    assert settings(**encode_env(ours)) == ours


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("", "redis://:p%2Fss%3A%40w@127.0.0.1:6379/0"),
        ("redis://cortex-agent@db:6380/1", "redis://cortex-agent:p%2Fss%3A%40w@db:6380/1"),
        ("unix://cortex@/run/redis.sock?db=1", "unix://cortex:p%2Fss%3A%40w@/run/redis.sock?db=1"),
        ("redis+sentinel://cortex@a:1,[::1]:2/m/3", "redis+sentinel://cortex:p%2Fss%3A%40w@a:1,[::1]:2/m/3"),
    ],
)
def test_the_password_of_redis_is_read_from_its_file(url: str, whole: str, tmp_path: Path) -> None:
    secret = tmp_path / "redis.password"
    secret.write_text("p/ss:@w\n")

    result = settings(f'[redis]\nurl = "{url}"\npassword_file = "{secret}"')

    assert result.redis_url == whole
    assert "p/ss" not in repr(encode_env(result))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", "redis://127.0.0.1:6379/0"),
        ("rediss://cortex:hunter2@db:6380/1?ssl_ca_certs=/ca.pem", "rediss://db:6380/1"),
        ("redis://db/0?password=hunter2", "redis://db/0"),
        ("unix://cortex:hunter2@/run/redis.sock", "unix:///run/redis.sock"),
        ("redis+sentinel://:hunter2@a:1,b:2/m?sentinel_password=hunter2", "redis+sentinel://a:1,b:2/m"),
    ],
)
def test_the_shown_address_of_redis_has_no_password(url: str, shown: str) -> None:
    assert settings(f'[redis]\nurl = "{url}"').redis_shown == shown


@pytest.mark.parametrize("url", ["redis://:hunter2/@db", "db:6379/hunter2", "http://hunter2@db", "redis://[hunter2"])
def test_an_invalid_address_of_redis_is_not_quoted(url: str) -> None:
    with pytest.raises(SettingsError, match="does not have the form redis://") as raised:
        _ = settings(f'[redis]\nurl = "{url}"').redis_url

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("redis+sentinel://:hunter2@a:1,b", "the master.s name is missing"),
        ("redis+sentinel://:hunter2@a:x/m", "Sentinel number 1 does not have the form"),
        ("rediss+sentinel://:hun/ter2@a/m", "write it as %2F"),
    ],
)
def test_an_error_names_the_wrong_part_of_an_address_with_sentinels(url: str, wrong: str) -> None:
    with pytest.raises(SettingsError, match=rf"\[redis\] url: .*{wrong}") as raised:
        _ = settings(f'[redis]\nurl = "{url}"').redis_url

    assert "ter2" not in str(raised.value)


def test_redis_with_sentinels_and_tls_trusts_the_fleets_authority() -> None:
    result = settings('ca_file = "/ca.pem"\n[redis]\nurl = "rediss+sentinel://a/m?sentinel_username=s"')

    assert result.redis_url == "rediss+sentinel://a/m?sentinel_username=s&ssl_ca_certs=/ca.pem"


async def test_an_unreachable_redis_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(up, "START_S", 0.05)

    with pytest.raises(Failed, match=r"Redis at redis://127\.0\.0\.1:1/0 does not answer"):
        await up._with_redis(settings('[redis]\nurl = "redis://cortex:hunter2@127.0.0.1:1/0"'), tmp_path, [], lock=-1)


def test_a_missing_password_file_is_an_error_with_its_name() -> None:
    with pytest.raises(SettingsError, match="password_file: /nowhere/secret"):
        _ = settings('[redis]\npassword_file = "/nowhere/secret"').redis_url
