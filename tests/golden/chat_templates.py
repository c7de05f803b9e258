"""Writes chat_templates.json: what chat templates give with transformers' own environment (Jinja2 3.1.6).

Every template is rendered over the same conversation, with some variables set before it: its text, and the characters
that its generation blocks made. A template that Jinja2 refuses has no text.
"""

import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

MESSAGES = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Yo"}]
VARIABLES = (
    "{% set s, e, n, m, f, g = 'Hello World', '', 7, -3, 2.5, 1e-07 %}"
    '{% set t, no, l = true, false, [3, 1, 2] %}'
    "{% set d = {'b': 2, 'a': 1, 'C': 3} %}"
    '{% set nested = {\'k\': [\'v\', {\'x\': none}], \'q\': "it\'s", \'dq\': \'say "hi" it\\\'s\'} %}'
    "{% set u, ws, words = 'naïve café 日本 😀', '  a  b \\n c ', ['b', 'A', 'c'] %}"
    "{% set people = [{'n': 'x', 'a': 3}, {'n': 'Y', 'a': 1}, {'n': 'z', 'a': 3}] %}"
    '{% set html, nl, ints = "<a href=\'x\'>&\\"", \'a\\nb\\n\\nc\', [1, 2, 3, 4, 5, 6, 7] %}'
)
# Without their braces.
EXPRESSIONS = r"""
['a', 1, true, none]
('a',)
()
(1, 2.0)
{'k': 'v', 'n': [1.5, false]}
{}
[]
[[], {}, ()]
{1: 2, none: 3, true: 4}
{1: 'a', 1.0: 'b'}
nested
messages
l ~ d
l | string
'' ~ none ~ true ~ 1.0
'a' ~ 1e-07 ~ 1e16 ~ 1e15 ~ 123456789.125
1e22
1e-5
0.0001
100000000000000000.0
1.0
-0.0
0.1 + 0.2
1/3
1e300
1e300 * 1e10
1000000000000000000000
10 ** 30 * 7
-7 // 2
7 // -2
-7 % 3
7 % -3
-7.5 % 2
7.5 // -2
-7.5 // 2
6 / 2
7 / 2
2 ** 10
2 ** -1
2 ** 0.5
-2 ** 2
2 ** 3 ** 2
(-8) ** 3
0 ** 0
1 + true
true + true
true * 3
'ab' * 3
3 * 'ab'
'ab' * 0
'ab' * -1
[1, 2] * 2
[1] + [2]
(1,) + (2,)
'a' + 'b'
'a' 'b'
'a' + 1
1 + 'a'
l + none
none + 1
l - l
'%s' % 'a'
'%s-%d' % ('x', 3)
'%s' % l
'%s %s' % (l, d)
'%r' % 'it\'s'
'%r' % u
'%a' % u
'%5d|%-5d|%05d|%+d|% d' % (3, 3, 3, 3, 3)
'%x %X %o %#x %#o' % (255, 255, 8, 255, 8)
'%x' % -255
'%d' % 3.99
'%d' % '3'
'%i' % true
'%f %.2f %10.3f|%-10.1f|' % (1.5, 2.675, 3.14159, 2.25)
'%e %.3e %E' % (12345.678, 0.00012, 1.5)
'%g %g %g %g' % (100000, 1000000, 0.0001, 0.00001)
'%.3g' % 1234.5
'%G' % 1e-10
'%c%c' % ('a', 66)
'%%' % ()
'%5s|%-5s|%.2s' % ('a', 'b', 'cde')
'%(a)s %(b)05d' % d
'%*d' % (5, 3)
'%-*d|' % (5, 3)
'%.*f' % (2, 3.14159)
'%s' % ()
'%s %s' % 'a'
'a' % 1
'%d%%' % 50
'%05.1f' % -2.5
'%+.1e' % 0
'%s' % none
'%s' % undefined_thing
'%z' % 1
'%s' % (1,)
'%s' % ((1,2),)
'a' and 'b'
'' and 'b'
'' or 'b'
7 and 0
0 and 7
0 or none
none or 0
[] or 'x'
'x' or y.z
m and s
not 1
not ''
not l
1 < 2 < 3
1 < 3 < 2
1 == 1.0
1 == true
'1' == 1
'a' < 'b'
[1,2] < [1,3]
(1,2) == [1,2]
[1] == [1.0]
none == none
none == false
undefined_thing == other_thing
1 < 'a'
none < 1
1 != 2
3 in l
'a' in d
1 in s
'ell' in s and 3 in l
s[1:3]
s[-3:]
u[3:7]
d.zz
d.get('zz')
d.items is callable
undefined_thing is defined
undefined_thing + 'a'
s.split()
ws.split()
ws.split(' ')
'a,b,c'.split(',')
'a,b,c'.split(',', 1)
'a,b,c'.split(',', maxsplit=1)
'a,b,c'.split(sep=',')
'a,b,c'.rsplit(',', 1)
'a,b,c'.rsplit(',', 1)[0]
' a b c '.rsplit(none, 1)
' a b c '.split(none, 1)
'abc'.split('')
''.split()
''.split(',')
'a<think>b</think>c'.split('</think>')[-1].lstrip('\n')
'a<think>b</think>c'.split('</think>')[0].rstrip('\n').split('<think>')[-1]
'xxaxx'.strip('x')
s.endswith(('x', 'y'))
'hello wORLD it\'s'.title()
s.find('o', 5)
'12a'.isdigit()
'Ab Cd'.istitle()
'abc'.removeprefix('x')
'abc'.partition('=')
'a\r\nb\x0bc\u2028d'.splitlines()
'abc'.isascii()
'{a} {b}'.format(a=1, b=none)
'{:.2f} {:8.3f} {:e} {:g} {:%}'.format(1.005, 3.14159, 12345.6789, 0.00001, 0.25)
'{!r} {!s}'.format('a', 'b')
'{'.format()
'{:{}}|'.format('a', 5)
'{}'.format(l)
'{:>5}'.format(none)
'{:d}'.format('a')
'{:10.4}|'.format(123.456)
'{:c}'.format(65)
l.index(9)
'hello-world (foo bar) it\'s {x' | title
n | length
s | last
words | min
people | sort(attribute='a') | map(attribute='n') | list
people | groupby('a')
people | groupby('a') | map(attribute='list') | list
people | groupby('n') | map(attribute='grouper') | list
(people | groupby('a'))[0].grouper
people | groupby('zz', default='q')
people | map(attribute='zz', default='?') | list
[0, 1, '', 'a', none] | reject | list
people | selectattr('zz', 'defined') | list
s | reverse
' 12 ' | int
3.99 | int
'1_0.5' | float
3.5 | round
2.1 | round(0, 'ceil')
3 | round
1250.0 | round(-2)
html | escape
(html | e) + '<'
html | e | e
html | forceescape
1 | filesizeformat
{'class': 'a b', 'id': none, 'x': '<'} | xmlattr
'a\nb\n\nc' | indent('> ', true, true)
d | tojson
u | tojson(ensure_ascii=true)
d | tojson(indent=2)
nested | tojson(indent=4)
[] | tojson(indent=2)
[[], {}] | tojson(indent=2)
d | tojson(separators=(',', ':'))
d | tojson(sort_keys=true)
d | tojson(indent=2, sort_keys=true)
(1, 2.0, none, true) | tojson
'a\x00\x1f\x7f\u2028\t' | tojson
d | tojson(indent='--')
undefined_thing | tojson
1 | tojson ~ 'x'
range(5) | last
n is number
s is sequence
n is even
n is sameas 7
s is callable
n is not none
'a' if false else 'b' if false else 'c'
1 ~ 2 + 3
s.split()[0].lower()[::-1]
messages[0].content
1.5e3
[1,,2]
raise_exception('no')
l | map('nope') | list
None
[] is sequence
[1.0] | string
1 < 2 == true
(1, 2)[1]
'é' | tojson(true)
l|sort(attribute='x')
people | selectattr('n', 'equalto', 'nope') | list | first | default('none')
'%s' | format(l)
['"', "'", '"\'']
3 * 2.0 | int
12345678901234567890.0
s.upper().lower().title()
'a\r\nb'
varargs
n m
not
n.upper.x
-1 ** 2
not not 1
[1,2] [0]
1 + 2 | string
d[['a']]
f(*l)
'{a}'.format(**d)
1,
'%5%' % ()
1e15 + 0.3
'ΑΣ ΒΣ'.title()
d.keys() == d.keys()
'12' | int(base=1)
[15 | round(-1), 25 | round(-1), -151 | round(-2)]
[range(3), range(5, 0, -2), range(10)[1:9:3]]
[0.1 + 0.7, 123456789012345678.0, 1e15, 9007199254740993.0, 5e-324]
('<' | safe) + '<' + ('>' | e)
1 if undefined_thing else 2
messages | selectattr('role', 'ne', 'user') | map(attribute='content') | list
'{:>{w}}|{:+.2e}|{0!r:>6}'.format('a', w=4)
"""
STATEMENTS = [
    "{{ '{{}}'.format() }}",
    '{% for x in l %}{{ loop.index }}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}',
    '{% for x in l %}{{ loop.index0 }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.length }} {{ loop.depth }};{% endfor %}',
    '{% for x in l %}[{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}]{% endfor %}',
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    '{% for x in [1,1,2] %}{{ loop.changed(x) }}{% endfor %}',
    '{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}',
    '{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}',
    '{% for k in d %}{{ k }}{% endfor %}',
    "{% for c in 'abc' %}{{ c }}-{% endfor %}",
    '{% for x in [] %}a{% else %}empty{% endfor %}',
    '{% for x in undefined_thing %}a{% else %}empty{% endfor %}',
    '{% for x in none %}a{% endfor %}',
    '{% for x in 5 %}a{% endfor %}',
    '{% for x in ints if x is odd %}{{ x }}{{ loop.index }}{{ loop.last }};{% endfor %}',
    '{% for x in ints if x > 100 %}{{ x }}{% else %}none{% endfor %}',
    '{% for x in ints %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}',
    '{% for x in [[1,[2,[3]]]] recursive %}{{ x[0] }}{% if x[1] %}({{ loop([x[1]]) }}){% endif %}{{ loop.depth }}{% endfor %}',
    '{% for (a, b) in [(1,2),(3,4)] %}{{ a }}{{ b }}{% endfor %}',
    '{% for a, b in [(1,2,3)] %}{{ a }}{% endfor %}',
    '{% set x = 1 %}{% for i in l %}{% set x = i %}{{ x }}{% endfor %}{{ x }}',
    '{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}',
    '{% set ns = namespace() %}{% set ns.q = 5 %}{{ ns.q }}{{ ns.zz }}',
    '{% set ns.x = 1 %}',
    '{% set ns = namespace() %}{% set ns._x = 1 %}',
    '{% set a, b = 1, 2 %}{{ a }}{{ b }}',
    '{% set x %}abc{{ n }}{% endset %}{{ x }}|{{ x | length }}',
    '{% set x | upper %}abc{% endset %}{{ x }}',
    "{% set x | replace('a', 'b') | upper %}abc{% endset %}{{ x }}",
    '{% if n > 5 %}big{% elif n > 2 %}mid{% else %}small{% endif %}',
    '{% if n > 50 %}big{% elif n > 2 %}mid{% else %}small{% endif %}',
    '{% if not undefined_thing %}no{% endif %}',
    '{% if messages[5] is defined %}y{% else %}n{% endif %}',
    '{% macro f(a, b=2, c=none) %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, c=3) }} {{ f(1, 5, 6) }}',
    '{% macro f(a) %}{{ a is defined }}{{ a }}{% endmacro %}{{ f() }}',
    '{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}',
    '{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}',
    '{% macro f() %}{{ varargs }} {{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}',
    '{% macro f(x) %}[{{ caller() }}{{ x }}]{% endmacro %}{% call f(3) %}body{{ n }}{% endcall %}',
    '{% macro f() %}{% for i in [1,2] %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(i) f() %}<{{ i }}>{% endcall %}',
    '{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}',
    '{% macro f() %}x{% endmacro %}{% call f() %}y{% endcall %}',
    '{% macro f() %}x{% endmacro %}{{ f }} {{ f.name }}',
    '{% macro fact(n) %}{{ 1 if n < 2 else n * fact(n - 1) | int }}{% endmacro %}{{ fact(5) }}',
    '{% macro m() %}{{ x }}{% endmacro %}{% set x = 5 %}{{ m() }}',
    '{% macro m() %}{{ x }}{% endmacro %}{% for x in [1] %}{{ m() }}{% endfor %}',
    '{% for x in [1,2] %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}',
    '{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(3) }}',
    '{% macro m() %}{% set y = 1 %}{{ y }}{% endmacro %}{{ m() }}{{ y }}',
    '{% filter upper %}abc {{ s }}{% endfilter %}',
    "{% filter replace('a', 'b') | upper %}abc{% endfilter %}",
    '{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }}',
    '{% set a = 5 %}{% with a = 1, b = a %}{{ b }}{% endwith %}',
    '{% raw %}{{ x }}{% if %}{% endraw %}',
    '{% raw -%}  {{ x }}  {%- endraw %}',
    '{# comment #}a{#- c -#} b',
    'a {{- n -}} b',
    'a {%- if t %} x {%- endif %} b',
    '  {% if t %}',
    '    x',
    '  {% endif %}',
    'y',
    '  {%+ if t %}x{% endif %}',
    '{% if t +%}',
    'x{% endif %}',
    '{% if t -%}',
    '',
    '   x',
    '{%- endif -%}',
    '   z',
    'line1\n{% if t %}\nline2\n{% endif %}\nline3\n',
    'line\n\n',
    '{{ n }}\n{{ n }}\n',
    '   {{ n }}\n   {# c #}\n  x',
    '{% for x in l -%}\n  {{ x }}\n{% endfor %}',
    '{% generation %}a{{ n }}{% endgeneration %}',
    'x{% generation %}ab{% endgeneration %}y{% generation %}é{% endgeneration %}z',
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<e>{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}",
    'x\n  {%- generation -%}\n  ab  \n  {%- endgeneration -%}\n y',
    'x\n  {% generation %}\n  ab  \n  {% endgeneration %}\n y',
    '{% set q = 1 %}{% generation %}{% set q = 2 %}{{ q }}{% endgeneration %}{{ q }}',
    '{% set k = 1 %}{% if t %}{% set k = 2 %}{% endif %}{{ k }}',
    '{% for i in [1,2,3] %}{{ q }}{% set q = i %}{% endfor %}',
    '{% for i in [1] %}{% set z = 1 %}{% endfor %}{{ z is defined }}',
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    '{% do l.append(1) %}',
    '{% unknown %}',
    '{% if %}{% endif %}',
    '{% for x in l %}',
    '{{ n',
    '{{ n }',
    '{% if t %}',
    '{% endif %}',
    '{# open',
    '{% break %}',
    '{% set true = 1 %}',
    "{{ {'a': 1} }}{{ {'a': {'b': 2}}}}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}",
    "{% set j = joiner('|') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}",
    "{% set g = ints | select('odd') %}{{ g | list }}{{ g | list }}",
    "{% set g = ints | map('string') %}{{ g | first }}{{ g | first }}{{ g | join(',') }}",
    "{% set g = ints | select('odd') %}{{ 3 in g }}{{ g | list }}",
    '{% for a in [1,2] %}{% for b in [3,4] %}{{ loop.index }}{{ a }}{{ b }} {% endfor %}{{ loop.index }}{% endfor %}',
    '{% for a in [1,2] %}{% set outer = loop %}{% for b in [3,4] %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}',
    "{% for m in messages %}{% if loop.index0 % 2 == 0 and m.role != 'user' %}{{ raise_exception('alternate!') }}{% endif %}{{ m.role }}{% endfor %}",
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}{{ loop_messages | length }}",
    '{% for message in messages[::-1] %}{{ message.role }}{% endfor %}',
    "{%- set ns = namespace(found=false) -%}{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}{%- set ns.found = true -%}{%- endif -%}{%- endfor -%}{{ ns.found }}",
    '{% set x = [1,2] + [3] %}{% set x = x + [4] %}{{ x }}',
    '{% for i in range(3) %}{{ i }}{% endfor %}',
    '{% for i in range(3) | reverse %}{{ i }}{% endfor %}',
    '{% for x in l | sort %}{{ x }}{% endfor %}',
    "{% for x in people | groupby('a') %}{{ x.grouper }}:{{ x.list | length }} {{ x[0] }};{% endfor %}",
    "{% for a, b in people | groupby('a') %}{{ a }}:{{ b | length }};{% endfor %}",
    '{% for c in ws.split() %}{{ c }}{% endfor %}',
    '{% for x in l %}{{ x }}{% endfor x %}',
    '{% if n is defined and n is not none and n > 3 %}ok{% endif %}',
    '{% set d2 = dict(d, x=5) %}{{ d2 }}',
    '{{ \'{\' }}{{ \'}}\' }}{{ "{%" }}',
    '{{ n -}}   x',
    '{{- n }}   x',
    '{{ n }} \n',
    '{%- macro render(m) -%}\n<{{ m.role }}>\n{%- endmacro -%}\n{{ render(messages[0]) }}',
    '{% for m in messages %}{{ loop }}{% endfor %}',
    '{% for x in l %}{% set _ = loop.index %}{{ _ }}{% endfor %}',
    '{% for x in l: %}{{ x }}{% endfor %}',
    '{{ [1,2,3][::-1] }}{{ [1,2,3][-2:] }}',
    'a\r\nb\rc',
    '{% trans %}x{% endtrans %}',
    '{% for loop in l %}{% endfor %}',
    '{% set x = caller %}{{ x is defined }}',
    '{% macro f(caller) %}{{ caller }}{% endmacro %}{{ f(1) }}',
    "{% macro f(caller=none) %}[{{ caller() if caller else 'n' }}]{% endmacro %}{{ f() }}{% call f() %}x{% endcall %}",
    '{% for x in [1,2,3] %}{% set y %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endset %}{{ y }}{% endfor %}',
    '{% for x in [1,2] %}{% for y in [] %}{% else %}{% break %}{% endfor %}{{ x }}{% endfor %}',
    '{% for x in [1,2] %}{% break %}{% else %}e{% endfor %}x',
    '{% for x in [1,2] %}{% continue %}{% else %}e{% endfor %}x',
    '{% for x in [1,2] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% else %}e{% endfor %}x',
    '{% for x in [1,2] %}{% with %}{% continue %}{% endwith %}{{ x }}{% endfor %}',
    '{%if t%}x{%endif%}',
    '{{n}}',
    '{{}}',
    '{{ }}',
    '{%  %}',
    '{% if t %}a{% else if n %}b{% endif %}',
    '{{ l[:] }}{{ l[::] }}{{ l[1::1] }}',
    '{% set a = b = 1 %}',
    '{% set (a, b) = (1, 2) %}{{ a }}{{ b }}',
    '{% set a.b.c = 1 %}',
    '{% for x in l if x recursive %}{{ x }}{% endfor %}',
    '{% for x in 1, 2 %}{{ x }}{% endfor %}',
    '{% for x, in [(1,)] %}{{ x }}{% endfor %}',
    '{% if 1, 2 %}x{% endif %}',
    '{% set x = 1, 2 %}{{ x }}',
]


def rendered(template):
    """The text, and the ranges of generation blocks."""
    try:
        texts, marked = render_jinja_template(
            [MESSAGES], chat_template=VARIABLES + template, return_assistant_tokens_mask=True, bos_token="<s>"
        )
        return [texts[0], marked[0]]
    except Exception:
        return [None, []]


if __name__ == "__main__":
    templates = ["{{ " + line + " }}" for line in EXPRESSIONS.strip("\n").split("\n")] + STATEMENTS
    rows = [[template, *rendered(template)] for template in templates]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps({"variables": VARIABLES, "messages": MESSAGES}, ensure_ascii=False)
    path = pathlib.Path(__file__).with_name("chat_templates.json")
    path.write_text(f"[\n{head},\n{lines}\n]\n", encoding="utf-8")
