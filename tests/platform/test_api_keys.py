"""API keys as values: rights, expiry and rotation."""

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
    keys_of,
    principal,
    rotate,
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
def test_a_scope_has_exactly_its_rights(scope: Scope, rights: set[str]) -> None:
    who = principal(replace(KEY, scope=scope))

    assert {r for r in Right if who.may(r)} == rights


def test_an_anonymous_caller_has_exactly_the_given_rights() -> None:
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
def test_globs_select_the_functions_of_a_key(globs: tuple[str, ...], function: str, may: bool) -> None:
    assert principal(replace(KEY, functions=globs)).may_use(function) is may


def test_a_glob_with_many_wildcards_is_matched_quickly() -> None:
    who = principal(replace(KEY, functions=("*a" * 60 + "b",)))

    assert not who.may_use("a" * 200)


def test_a_key_is_valid_until_it_expires() -> None:
    key = replace(KEY, expires=200.0)

    assert [key.over(now) for now in (199.9, 200.0)] == [False, True]
    assert not KEY.over(1e12)


def test_a_rotated_key_expires_after_the_overlap_and_its_replacement_keeps_name_and_limits() -> None:
    limited = replace(KEY, limits=Limits(rpm=5), functions=("a*",))

    fresh, ending = rotate(limited, digest("two"), 1000.0, 60)

    assert (fresh.id, fresh.name, fresh.limits, fresh.functions) == ("k1", "team", Limits(rpm=5), ("a*",))
    assert (fresh.digest, fresh.expires, fresh.replaced) == (digest("two"), 0.0, False)
    assert (ending.digest, ending.expires, ending.replaced) == (digest("one"), 1060.0, True)


def test_a_rotation_never_extends_a_keys_life() -> None:
    _, ending = rotate(replace(KEY, expires=1010.0), digest("two"), 1000.0, 60)

    assert ending.expires == 1010.0


def test_keys_are_found_by_name_or_id_the_current_one_first() -> None:
    old = replace(KEY, digest="0", replaced=True, created=300.0)
    other = replace(KEY, digest="9", id="k2", name="other")

    assert keys_of([old, other, KEY], "team") == [KEY, old]
    assert keys_of([old, other, KEY], "k2") == [other]
    assert keys_of([old, other, KEY], "nobody") == []


def test_only_keys_of_one_group_share_cached_prompts() -> None:
    grouped = [principal(replace(KEY, id=i, group="k1")).cache_owner for i in ("k8", "k9")]
    apart = [principal(replace(KEY, id=i)).cache_owner for i in ("k1", "k2")]
    elsewhere = principal(replace(KEY, group="k2")).cache_owner

    assert len(set(grouped)) == 1
    assert len({*grouped, *apart, elsewhere}) == 4


@pytest.mark.parametrize("group", ["a b", "a/b", "a:b", "a\n", "-a", "x" * 64])
def test_a_group_follows_the_rules_for_key_names(group: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(group, Group)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "a\n", "é", "-a", "x" * 64])
def test_names_unsafe_in_a_path_or_log_are_invalid(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(name, Name)


def test_a_key_with_lone_surrogates_has_a_digest() -> None:
    assert len(digest("\udcff\x00")) == 64
