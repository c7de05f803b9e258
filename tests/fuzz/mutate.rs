//! Damage to files: to their bytes, to what they say, and from one to another.

use rand::Rng;
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::files::{File, Kind};
use super::json::{NUMBERS, TEXTS, damage};

/// Larger files are cut to this.
const LARGEST: usize = 1 << 18;

/// What templates are made of, and what a reader of templates may stumble over.
const TEMPLATE: [&str; 44] = [
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if m.role == 'user' %}",
    "{% elif false %}",
    "{% else %}",
    "{% endif %}",
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{{ messages }}",
    "{{ messages[0]['content'] | trim }}",
    "{{ messages[1:][::-1] | tojson }}",
    "{% set ns = namespace(a=1) %}",
    "{% set ns.a = ns.a + 1 %}",
    "{% set a = a ~ a %}",
    "{{ loop.index0 }}",
    "{% break %}",
    "{% for i in range(100000) %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% include 'chat_template' %}",
    "{% extends 'chat_template' %}",
    "{% block a %}{% endblock %}{{ self.a() }}",
    "{{ 'a' * 100000000 }}",
    "{{ [1] * 100000000 }}",
    "{{ 'a' | indent(18446744073709551615) }}",
    "{{ 'a\nb' | indent(4000000000) }}",
    "{{ 1 // 0 }}",
    "{{ 1 % 0 }}",
    "{{ 9 ** 999 }}",
    "{{ -9223372036854775808 // -1 }}",
    "{{ 1.5 | round(999999999) }}",
    "{{ [1,2] | batch(0) }}",
    "{{ [1,2] | slice(0) }}",
    "{{ 'a'.replace('', 'bb') }}",
    "{{ 'a'.split('') }}",
    "{{ strftime_now('%d %b %Q %10000Y %') }}",
    "{{ messages | tojson(indent=99999) }}",
    "{{ raise_exception('no') }}",
    "{{ '%99999999d' | format(1) }}",
    "{{ range(-9223372036854775808, 9223372036854775807) }}",
    "{{ 'aa'.count('') ~ 'é'[1:] ~ 'x'.center(3) }}",
];

/// A few kinds of damage to one of the files; `seeds` are all files that a target starts from.
pub fn mutate(files: &mut Vec<File>, seeds: &[Vec<File>], rng: &mut ChaCha8Rng) {
    for _ in 0..rng.random_range(1..=4) {
        if rng.random_ratio(1, 60) && files.len() > 1 {
            files.remove(rng.random_range(0..files.len()));
            continue;
        }
        let other = seeds.choose(rng).and_then(|seed| seed.choose(rng)).expect("seeds have files").clone();
        let file = files.choose_mut(rng).expect("a case has files");
        if rng.random_ratio(1, 60) {
            file.bytes = other.bytes;
        } else if rng.random_ratio(1, 2) {
            structured(file, rng);
        } else {
            plain(file, &other.bytes, rng);
        }
        file.bytes.truncate(LARGEST);
    }
}

/// Damage that knows the format.
fn structured(file: &mut File, rng: &mut ChaCha8Rng) {
    match file.kind {
        Kind::Json => json_text(&mut file.bytes, rng),
        Kind::JsonLines => {
            let mut lines: Vec<Vec<u8>> = file.bytes.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
            let i = rng.random_range(0..lines.len());
            json_text(&mut lines[i], rng);
            file.bytes = lines.join(&b'\n');
        }
        Kind::Safetensors => header(&mut file.bytes, rng),
        Kind::Template => insert(&mut file.bytes, TEMPLATE.choose(rng).expect("some").as_bytes(), rng),
        Kind::Yaml => {
            let more = [
                "&a [*a, *a]\n",
                "? ",
                "- ",
                ": ",
                "\n  ",
                "!!binary ",
                "<<: *a",
                "a: &a\n",
                "|",
                ">",
                "---\n",
                "{",
                "[",
                "\"",
                "~",
            ];
            insert(&mut file.bytes, more.choose(rng).expect("some").as_bytes(), rng);
        }
        Kind::Text => insert(&mut file.bytes, TEXTS.choose(rng).expect("some").as_bytes(), rng),
    }
}

fn json_text(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(mut value) => {
            (0..rng.random_range(1..=3)).for_each(|_| damage(&mut value, rng));
            *bytes = value.to_string().into_bytes();
        }
        Err(_) => numbers(bytes, rng),
    }
}

/// Damages the header of a safetensors file, and makes its length right again.
fn header(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return };
    let length = u64::from_le_bytes(*length).min(rest.len() as u64) as usize;
    let (mut text, mut data) = (rest[..length].to_vec(), rest[length..].to_vec());
    match rng.random_range(0..4) {
        0 => numbers(&mut text, rng),
        1 => data.resize(data.len().saturating_add_signed(rng.random_range(-9i32..9) as isize), 0x7F),
        _ => json_text(&mut text, rng),
    }
    if rng.random_ratio(7, 8) {
        text.resize(text.len().next_multiple_of(8), b' ');
    }
    *bytes = [&(text.len() as u64).to_le_bytes(), &text[..], &data].concat();
}

/// Damage that knows nothing.
fn plain(file: &mut File, other: &[u8], rng: &mut ChaCha8Rng) {
    let bytes = &mut file.bytes;
    let len = bytes.len();
    if len == 0 {
        return insert(bytes, other, rng);
    }
    let at = rng.random_range(0..len);
    let until = rng.random_range(at..=len.min(at + 64));
    match rng.random_range(0..10) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => {
            bytes[at] =
                *[0, 0xFF, 0x80, b'"', b'{', b'}', b'[', b']', b'\\', b'\n', b'0', b'-'].choose(rng).expect("some")
        }
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..until)),
        4 => {
            let part = bytes[at..until].repeat(rng.random_range(1..5));
            insert(bytes, &part, rng);
        }
        5 if !other.is_empty() => {
            let from = rng.random_range(0..other.len());
            let part = &other[from..other.len().min(from + rng.random_range(0..200))];
            insert(bytes, part, rng);
        }
        6 => {
            let depth = if rng.random_ratio(1, 10) { 100_000 } else { rng.random_range(1..300) };
            let open = ["[", "{\"a\":", "(", "{{ (", "- ", "{% if a %}", "[["].choose(rng).expect("some");
            let nested = open.repeat(depth);
            insert(bytes, nested.as_bytes(), rng);
        }
        7 => insert(bytes, TEXTS.choose(rng).expect("some").as_bytes(), rng),
        _ => numbers(bytes, rng),
    }
}

/// Replaces one number of a text by another.
fn numbers(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let starts: Vec<usize> =
        (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit() && (i == 0 || !bytes[i - 1].is_ascii_digit())).collect();
    let Some(&start) = starts.choose(rng) else { return };
    let digits = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    let number = NUMBERS.choose(rng).expect("some").bytes();
    bytes.splice(start..start + digits, number);
}

fn insert(bytes: &mut Vec<u8>, part: &[u8], rng: &mut ChaCha8Rng) {
    let at = rng.random_range(0..=bytes.len());
    bytes.splice(at..at, part.iter().copied());
}
