"""The schemas that editors complete and check by: they take what is shipped, refuse what the gateway refuses, and say
what everything is."""

import json
import re
import tomllib

import pytest
from stage import ROOT

CONFIG = ROOT / "config"
MAIN, ORG = json.loads((CONFIG / "schema.json").read_text()), json.loads((CONFIG / "org.schema.json").read_text())
KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
WORDS = {"$schema", "$ref", "title", "description", "definitions", "type", "properties", "additionalProperties", "required",
         "items", "minItems", "enum", "pattern", "minimum", "anyOf", "oneOf", "allOf"}  # fmt: skip


def is_a(value, kind):
    return isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def faults(value, schema, root, where="file"):
    """Where `value` breaks `schema`: the words of JSON Schema that ours use, and no others."""
    assert schema.keys() <= WORDS, schema.keys() - WORDS
    if "$ref" in schema:
        return faults(value, root["definitions"][schema["$ref"].rsplit("/", 1)[1]], root, where)
    kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    if kinds and not any(is_a(value, kind) for kind in kinds):
        return [f"{where} is no {kinds}: {value!r}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where} is none of {schema['enum']}")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{where} does not match {schema['pattern']}")
    if is_a(value, "integer") and value < schema.get("minimum", value):
        found.append(f"{where} is too small")
    if isinstance(value, dict):
        own, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{where} lacks {name}" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            if name not in own and others is False:
                found.append(f"{where}.{name} is unknown")
            elif name in own or isinstance(others, dict):
                found += faults(inner, own.get(name, others), root, f"{where}.{name}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            found.append(f"{where} is too short")
        for number, inner in enumerate(value):
            found += faults(inner, schema.get("items", {}), root, f"{where}[{number}]")
    for one in schema.get("allOf", []):
        found += faults(value, one, root, where)
    fitting = [sum(not faults(value, one, root, where) for one in schema.get(word, [])) for word in ("anyOf", "oneOf")]
    if "anyOf" in schema and not fitting[0] or "oneOf" in schema and fitting[1] != 1:
        found.append(f"{where} fits none of its forms, or several")
    return found


EXAMPLES = [(CONFIG / "portcullis.toml", MAIN), *((file, ORG) for file in sorted((CONFIG / "orgs.d").glob("*.toml")))]


@pytest.mark.parametrize(("file", "schema"), EXAMPLES, ids=lambda one: getattr(one, "name", ""))
def test_what_is_shipped_fits_and_names_its_schema(file, schema):
    text = file.read_text()
    assert faults(tomllib.loads(text), schema, schema) == []
    named = re.match(r"#:schema (\S+)\n", text)
    assert json.loads((file.parent / named[1]).read_text()) == schema


def settings(text):
    """A file with what stands in comments as settings, as an operator would write them."""
    return re.sub(r"^# ([a-z_]+ *= )", r"\1", text, flags=re.M)


def test_the_settings_in_comments_fit_too():
    text = settings((CONFIG / "portcullis.toml").read_text())
    assert "max_certificate_lifetime" in tomllib.loads(text)["client_auth"]
    assert faults(tomllib.loads(text), MAIN, MAIN) == []


MISTAKES = [
    ("portcullis.toml", "handshake_timeout", "handshake_timeuot"),
    ("portcullis.toml", '"5s"               #', "5               #"),
    ("portcullis.toml", '"16MiB"', '"16 megabytes"'),
    ("portcullis.toml", 'revocation  = "required"', 'revocation  = "perhaps"'),
    ("portcullis.toml", '"env:OPENAI_API_KEY"', '"sk-1234"'),
    ("portcullis.toml", 'input = "2.50"', "input = 2.5"),
    ("portcullis.toml", "max_output_tokens = 16384", "max_output_tokens = 0"),
    ("portcullis.toml", '[quota]\nstore   = "embedded"', '[quota]\nstore   = "redis"'),
    ("portcullis.toml", "server_names =", "# server_names ="),
    ("orgs.d/acme.toml", "requests_per_minute = 600", "requests_per_minut = 600"),
    ("orgs.d/acme.toml", "20_000_000", '"many"'),
    ("orgs.d/acme.toml", "5_000_000", "-5"),
    ("orgs.d/acme.toml", '"2500.00"', "2500.00"),
    ("orgs.d/acme.toml", "limit = 20, burst", "limits = 20, burst"),
    ("orgs.d/acme.toml", '"active"', '"asleep"'),
    ("orgs.d/acme.toml", "uri       =", 'dns = "acme.example"\nuri       ='),
    ("orgs.d/acme.toml", 'authority = "partners"', ""),
    ("orgs.d/acme.toml", "tokens_per_day      = 20_000_000", "tokens_per_day = { limit = 5, burst = 9 }"),
    ("orgs.d/acme.toml", '"2026-11-01"', '"November"'),
    ("orgs.d/acme.toml", '"2026-11-01"', '"2026-11-01T12:00:00"'),
    ("portcullis.toml", "cached_input = 0,", 'cached_input = "0.0004",'),
    ("orgs.d/acme.toml", "purposes =", "purpose_ids ="),
    ("orgs.d/globex.toml", "shadow = true", 'shadow = "yes"'),
    ("orgs.d/globex.toml", 'id       = "globex"', 'id       = "Globex SOC"'),
]


@pytest.fixture
def shipped(stage):
    """The shipped example with everything that it refers to."""
    one = stage(start=False)
    one.run("certs", "--dir", "certs", "init", "--server", "gateway.example", check=True)
    for file, _ in EXAMPLES:
        target = one.folder / "config" / file.relative_to(CONFIG)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    one.check = lambda: one.run("check", "-c", "config/portcullis.toml", env={"OPENAI_API_KEY": "key"})
    return one


@pytest.mark.parametrize(("name", "right", "wrong"), MISTAKES, ids=lambda one: one[:30])
def test_a_mistake_is_one_for_the_editor_and_for_the_gateway(shipped, name, right, wrong):
    file, schema = shipped.folder / "config" / name, ORG if name.startswith("orgs.d") else MAIN
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong, 1))
    assert faults(tomllib.loads(file.read_text()), schema, schema)
    assert shipped.check().returncode == 1


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("portcullis.toml", '"16MiB"', '" 16 MiB "'),
        ("portcullis.toml", 'idle_timeout = "120s"', 'idle_timeout = " 1m 60s "'),
        ("orgs.d/acme.toml", 'uri       = "spiffe://partners/acme"', f'leaf_sha256 = "{":".join(["aB"] * 32)}"'),
    ],
)
def test_what_the_gateway_takes_an_editor_takes(shipped, name, one, other):
    file, schema = shipped.folder / "config" / name, ORG if name.startswith("orgs.d") else MAIN
    assert one in file.read_text()
    file.write_text(file.read_text().replace(one, other, 1))
    assert faults(tomllib.loads(file.read_text()), schema, schema) == []
    assert shipped.check().returncode == 0, shipped.check().stderr


def described(schema, where="file"):
    """Every property, and whether the schema says what it is."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{where}.{name}", inner.get("description", "")
        yield from described(inner, f"{where}.{name}")
    inside = [schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", []), *schema.get("definitions", {}).values()]
    for one in inside:
        if isinstance(one, dict):
            yield from described(one, where)


@pytest.mark.parametrize("schema", [MAIN, ORG], ids=["main", "org"])
def test_every_property_says_what_it_is(schema):
    told = dict(described(schema))
    assert len(told) > 30
    assert [name for name, text in told.items() if not re.fullmatch(r"[A-Za-z].{4,}[.:]?", text)] == []


def test_every_limit_of_the_schema_is_one_for_the_gateway(shipped):
    limits = ORG["definitions"]["all_limits"]["properties"]
    lines = [f'{name} = "5.00"' if name.startswith("cost") else f"{name} = 5" for name in limits]
    file = shipped.folder / "config/orgs.d/acme.toml"
    text = re.sub(r"\[limits\]\n(?:.+\n)+", "[limits]\n" + "\n".join(lines) + "\n", file.read_text())
    assert faults(tomllib.loads(text), ORG, ORG) == []
    file.write_text(text)
    assert shipped.check().returncode == 0, shipped.check().stderr
    assert {name for name in limits if "_per_" in name} == set(
        f"{unit}_per_{window}"
        for unit in ("requests", "tokens", "input_tokens", "output_tokens", "cost")
        for window in ("second", "minute", "hour", "day", "month")
        if unit != "cost" or window in ("day", "month")
    )


def test_the_program_prints_both(stage):
    one = stage(start=False)
    assert json.loads(one.run("config", "schema").stdout) == MAIN
    assert json.loads(one.run("config", "schema", "--org").stdout) == ORG
