use llamaprobe::formats::safetensors::{Checkpoint, Dtype, Tensor, write};
use serde_json::json;

use super::{Case, case, put};

const FILE: &str = "model.safetensors";

/// A file of a header text and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A file of a header filled with spaces to `8 k + off` bytes, so that the data lies `off` bytes off.
fn padded(header: &str, off: usize, data: &[u8]) -> Vec<u8> {
    let width = header.len().next_multiple_of(8) + off;
    file(&format!("{header:width$}"), data)
}

/// A file whose header is one tensor `w`.
fn one(dtype: &str, shape: &str, begin: i64, end: i64) -> Vec<u8> {
    file(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#), &[0; 16])
}

fn two(a: (usize, usize), b: (usize, usize)) -> Vec<u8> {
    let entry =
        |(begin, end): (usize, usize)| json!({"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]});
    file(&json!({"a": entry(a), "b": entry(b)}).to_string(), &[0; 16])
}

pub fn cases() -> Vec<Case> {
    let raw = |name: &str, bytes: Vec<u8>, words: &[&str]| {
        let words = [&[FILE], words].concat();
        case(format!("safetensors: {name}"), &words, move |dir| {
            put(dir, FILE, &bytes);
            Checkpoint::open(dir)?.check_finite()
        })
    };
    let full = one("F32", "[4]", 0, 16);
    let mut not_utf8 = full.clone();
    not_utf8[10] = 0xFF;
    let nan: Vec<u8> = [1.0f32, f32::NAN, 0.0, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let inf: Vec<u8> = [half::bf16::ONE, half::bf16::NEG_INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    let deep = format!("{{\"w\":{}", "[".repeat(100_000));
    let mut cases = vec![
        raw("empty file", vec![], &["header length", "8 bytes", "0"]),
        raw("seven bytes", vec![0; 7], &["header length", "7"]),
        raw("header beyond the file", file("{}", b"")[..9].to_vec(), &["header length", "found 2"]),
        raw("header of 2^63", u64::MAX.to_le_bytes().to_vec(), &["header length", "18446744073709551615"]),
        raw("header of 100 MB and one", 100_000_001u64.to_le_bytes().to_vec(), &["header length", "100000001"]),
        raw("header not UTF-8", not_utf8, &["header", "UTF-8", "2"]),
        raw("header starts with a space", file(" {}", b""), &["header", "{", "' '"]),
        raw("header is a list", file("[]", b""), &["header", "{"]),
        raw("header not closed", file("{", b""), &["header", "EOF"]),
        raw("text after the header", file("{}x", b""), &["header", "trailing"]),
        raw("deep nesting", file(&deep, b""), &["header", "tensor w"]),
        raw("tensor is a number", file(r#"{"w":1}"#, b""), &["tensor w"]),
        raw("no dtype", file(r#"{"w":{"shape":[],"data_offsets":[0,0]}}"#, b""), &["tensor w", "dtype"]),
        raw("no shape", file(r#"{"w":{"dtype":"F32","data_offsets":[0,0]}}"#, b""), &["tensor w", "shape"]),
        raw("no offsets", file(r#"{"w":{"dtype":"F32","shape":[]}}"#, b""), &["tensor w", "data_offsets"]),
        raw(
            "three offsets",
            file(r#"{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4,4]}}"#, &[0; 4]),
            &["tensor w"],
        ),
        raw(
            "further field",
            file(r#"{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}}"#, &[0; 4]),
            &["tensor w", "x"],
        ),
        raw(
            "dtype twice",
            file(r#"{"w":{"dtype":"F32","dtype":"I32","shape":[],"data_offsets":[0,4]}}"#, &[0; 4]),
            &["tensor w", "dtype"],
        ),
        raw(
            "name twice",
            file(
                r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                &[0; 2],
            ),
            &["tensor w", "twice"],
        ),
        raw("metadata twice", file(r#"{"__metadata__":{},"__metadata__":{}}"#, b""), &["__metadata__", "twice"]),
        raw("metadata not text", file(r#"{"__metadata__":{"a":1}}"#, b""), &["__metadata__"]),
        raw("unknown dtype", one("F31", "[4]", 0, 16), &["tensor w", "dtype", "F31"]),
        raw("dtype of lower case", one("f32", "[4]", 0, 16), &["tensor w", "dtype", "f32"]),
        raw("negative dimension", one("F32", "[-4]", 0, 16), &["tensor w", "-4"]),
        raw("fraction of a dimension", one("F32", "[4.5]", 0, 16), &["tensor w", "4.5"]),
        raw("negative offset", one("F32", "[4]", -1, 15), &["tensor w", "-1"]),
        raw("offsets reversed", one("F32", "[4]", 16, 0), &["tensor w", "data_offsets", "[16, 0]"]),
        raw("end beyond the data", one("F32", "[5]", 0, 20), &["tensor w", "data_offsets", "20"]),
        raw("end of 2^62", one("U8", "[4611686018427387904]", 0, 1 << 62), &["tensor w", "data_offsets"]),
        raw(
            "shape overflows",
            one("F32", "[4294967296,4294967296,4294967296]", 0, 16),
            &["tensor w", "shape", "overflow"],
        ),
        raw("shape overflows with the dtype", one("F64", "[4611686018427387904]", 0, 16), &["tensor w", "overflow"]),
        raw("length against shape", one("F32", "[3]", 0, 16), &["tensor w", "12", "16"]),
        raw("length against dtype", one("F64", "[4]", 0, 16), &["tensor w", "32", "16"]),
        raw("overlap", two((0, 10), (8, 16)), &["tensor b", "overlap"]),
        raw("the same bytes twice", two((0, 16), (0, 16)), &["tensor b", "overlap"]),
        raw("gap", two((0, 4), (8, 16)), &["tensor b", "gap"]),
        raw("gap at the start", one("U8", "[12]", 4, 16), &["tensor w", "gap"]),
        raw("bytes at the end", one("U8", "[12]", 0, 12), &["data", "12", "16"]),
        raw(
            "NaN",
            padded(r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 0, &nan),
            &["tensor w", "NaN", "element 1"],
        ),
        raw(
            "infinity",
            padded(r#"{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#, 0, &inf),
            &["tensor w", "-inf"],
        ),
    ];
    let good = |dir: &std::path::Path, name: &str, tensor: &str| {
        let tensor = Tensor { name: tensor, dtype: Dtype::F32, shape: &[1], data: &[0; 4] };
        write(dir.join(name), &[tensor], &[]).expect("writes");
    };
    cases.push(case("no weights", &["model.safetensors", "neither"], |dir| Checkpoint::open(dir).map(|_| ())));
    for (name, words) in [
        ("pytorch_model-00001-of-00002.bin", ["pytorch_model-00001-of-00002.bin", "save_pretrained"]),
        ("consolidated.safetensors", ["consolidated.safetensors", "model.safetensors"]),
        ("model.gguf", ["model.gguf", "model.safetensors"]),
    ] {
        cases.push(case(name, &words, move |dir| {
            put(dir, name, "");
            Checkpoint::open(dir).map(drop)
        }));
    }
    cases.push(case("only a pickle", &["pytorch_model.bin", "safetensors"], |dir| {
        put(dir, "pytorch_model.bin", "");
        Checkpoint::open(dir).map(|_| ())
    }));
    cases.push(case("wrong shape", &[FILE, "tensor w", "[2, 3]", "[1]"], move |dir| {
        good(dir, FILE, "w");
        Checkpoint::open(dir)?.expect("w", &[2, 3]).map(|_| ())
    }));
    cases.push(case("missing tensor", &[FILE, "tensor lm_head.weight", "none"], move |dir| {
        good(dir, FILE, "w");
        Checkpoint::open(dir)?.expect("lm_head.weight", &[1]).map(|_| ())
    }));
    cases.push(case("unexpected tensor", &[FILE, "tensor w", "[1]"], move |dir| {
        good(dir, FILE, "w");
        Checkpoint::open(dir)?.deny_unexpected(|name| name == "x")
    }));
    let index = |name: &str, text: &str, words: &[&str]| {
        let (words, text) = ([&["index.json"], words].concat(), text.to_string());
        case(format!("index: {name}"), &words, move |dir| {
            good(dir, "1.safetensors", "a");
            good(dir, "2.safetensors", "b");
            put(dir, "model.safetensors.index.json", &text);
            Checkpoint::open(dir).map(|_| ())
        })
    };
    cases.extend([
        index("not JSON", "{", &["EOF"]),
        index("a list", "[]", &["object"]),
        index("no map", "{}", &["weight_map"]),
        index("empty map", r#"{"weight_map":{}}"#, &["weight_map"]),
        index("file is a number", r#"{"weight_map":{"a":1}}"#, &["weight_map.a"]),
        index("upwards", r#"{"weight_map":{"a":"../1.safetensors"}}"#, &["weight_map.a", "../1"]),
        index("absolute", r#"{"weight_map":{"a":"/1.safetensors"}}"#, &["weight_map.a"]),
        index("shard missing", r#"{"weight_map":{"a":"1.safetensors","b":"3.safetensors"}}"#, &["3.safetensors"]),
        index("name twice", r#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#, &["a", "twice"]),
    ]);
    cases
}
