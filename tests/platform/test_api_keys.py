"""API keys as values: what a key allows, and what becomes of it."""

import msgspec
import pytest
from msgspec.structs import replace

from cortex.platform.api_keys import (
    ApiKey,
    Group,
    Limits,
    Name,
    Right,
    Scope,
    anonymous,
    digest,
    keys_named,
    principal,
    rotated,
)

KEY = ApiKey(digest=digest("one"), id="k1", name="team", created=100.0)


@pytest.mark.parametrize(
    ("scope", "rights"),
    [
        (Scope.INFERENCE, {"nothing", "inference"}),
        (Scope.STATUS, {"nothing", "status"}),
        (Scope.ADMIN, {"nothing", "inference", "status", "admin"}),
    ],
)
def test_a_scope_opens_what_it_is_for_and_nothing_else(scope: Scope, rights: set[str]) -> None:
    who = principal(replace(KEY, scope=scope))

    assert {r for r in Right if who.may(r)} == rights


def test_nobody_in_particular_may_do_what_is_said_and_nothing_else() -> None:
    who = anonymous(Right.INFERENCE)

    assert [r for r in Right if who.may(r)] == [Right.NOTHING, Right.INFERENCE]


@pytest.mark.parametrize(
    ("globs", "function", "may"),
    [
        ((), "any/thing", True),
        (("qwen*",), "qwen3-8b", True),
        (("qwen*",), "Qwen3-8B", False),
        (("org/*", "small"), "small", True),
        (("org/*",), "other/model", False),
        (("[", "a" * 200), "b", False),
    ],
)
def test_globs_say_which_functions_a_key_may_use(globs: tuple[str, ...], function: str, may: bool) -> None:
    assert principal(replace(KEY, functions=globs)).may_use(function) is may


def test_a_glob_that_is_a_bomb_for_regular_expressions_is_answered_at_once() -> None:
    who = principal(replace(KEY, functions=("*a" * 60 + "b",)))

    assert not who.may_use("a" * 200)


def test_a_key_ends_when_it_expires_and_not_before() -> None:
    key = replace(KEY, expires=200.0)

    assert [key.over(now) for now in (199.9, 200.0)] == [False, True]
    assert not KEY.over(1e12)


def test_a_rotated_key_keeps_its_name_and_limits_and_ends_after_the_overlap() -> None:
    limited = replace(KEY, limits=Limits(rpm=5), functions=("a*",))

    fresh, ending = rotated(limited, digest("two"), 1000.0, 60)

    assert (fresh.id, fresh.name, fresh.limits, fresh.functions) == ("k1", "team", Limits(rpm=5), ("a*",))
    assert (fresh.digest, fresh.expires, fresh.replaced) == (digest("two"), 0.0, False)
    assert (ending.digest, ending.expires, ending.replaced) == (digest("one"), 1060.0, True)


def test_a_rotation_never_makes_a_key_live_longer() -> None:
    _, ending = rotated(replace(KEY, expires=1010.0), digest("two"), 1000.0, 60)

    assert ending.expires == 1010.0


def test_a_key_is_found_by_name_and_by_id_the_current_one_first() -> None:
    old = replace(KEY, digest="0", replaced=True, created=300.0)
    other = replace(KEY, digest="9", id="k2", name="other")

    assert keys_named([old, other, KEY], "team") == [KEY, old]
    assert keys_named([old, other, KEY], "k2") == [other]
    assert keys_named([old, other, KEY], "nobody") == []


def test_keys_of_one_group_own_the_same_cached_prompts_and_no_other_key_does() -> None:
    grouped = [principal(replace(KEY, id=i, group="k1")).cache_owner for i in ("k8", "k9")]
    apart = [principal(replace(KEY, id=i)).cache_owner for i in ("k1", "k2")]
    elsewhere = principal(replace(KEY, group="k2")).cache_owner

    assert len(set(grouped)) == 1
    assert len({*grouped, *apart, elsewhere}) == 4


@pytest.mark.parametrize("group", ["a b", "a/b", "a:b", "a\n", "-a", "x" * 64])
def test_a_group_is_named_as_a_key_is(group: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(group, Group)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "a\n", "é", "-a", "x" * 64])
def test_names_that_could_upset_a_path_or_a_log_are_none(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(name, Name)


def test_a_key_no_bytes_can_spell_has_a_digest_all_the_same() -> None:
    assert len(digest("\udcff\x00")) == 64
