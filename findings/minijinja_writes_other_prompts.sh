#!/usr/bin/env bash
# minijinja 3.1.0 beside Jinja2 3.1.6: the same chat template writes another prompt, with no error, at four places.
#
# - `schema.items` is the key of the dict in minijinja and the method of the dict in Jinja2, so that of a JSON schema of a list
#   `{{ schema.items.type }}` is the type in the one and nothing in the other (pycompat, which is on, adds methods for calls only).
# - `is sequence` is true of text and of dicts in Jinja2, and false in minijinja.
# - Small and large floating point numbers are 1e-05 and 1e+16 in Jinja2, 0.00001 and 10000000000000000.0 in minijinja.
# - A carriage return in the template's own text is dropped by Jinja2 and kept by minijinja.
#
# Expected: the same text, as chat templates are written for Jinja2 and tried with it.
# A program that renders templates with the other engine has to make up for each.
source "$(dirname "$0")/findings.sh"
python minijinja==3.1.0 jinja2==3.1.6 <<'PY'
import sys
from importlib.metadata import version
import jinja2.sandbox, minijinja

python_engine = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
rust_engine = minijinja.Environment(trim_blocks=True, lstrip_blocks=True, pycompat=True)
given = {"schema": {"type": "array", "items": {"type": "string"}}, "content": "text", "low": 1e-05, "high": 1e16}
templates = {
    "of {{ schema.items.type }}": ("of ", "of string"),
    "{% if content is sequence %}parts{% else %}text{% endif %}": ("parts", "text"),
    "{% if schema is sequence %}parts{% else %}dict{% endif %}": ("parts", "dict"),
    "{{ low }} to {{ high }}": ("1e-05 to 1e+16", "0.00001 to 10000000000000000.0"),
    "a\r\nb": ("a\nb", "a\r\nb"),
}
print(f"minijinja {version('minijinja')}, jinja2 {version('jinja2')}")
changed = 0
for template, expected in templates.items():
    seen = python_engine.from_string(template).render(**given), rust_engine.render_str(template, **given)
    print(f"{template!r}: {seen[0]!r} by Jinja2, {seen[1]!r} by minijinja")
    changed |= seen != expected
sys.exit(changed)
PY
