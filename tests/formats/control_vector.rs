//! Control vectors and the GGUF files that they are in.

use std::fs;
use std::path::Path;

use llamaprobe::formats::control_vector::ControlVector;
use llamaprobe::formats::gguf::{Gguf, Value};

use crate::support::temp;

/// `GGUFWriter` of gguf 0.19.0: architecture `controlvector`, `controlvector.model_hint` llama, `controlvector.layer_count`
/// 2 as int32, `direction.1` [1, -2, 0.5], `direction.3` [0.25, 3, -1].
const WRITTEN: &str = "474755460300000002000000000000000300000000000000140000000000000067656e6572616c2e6172636869746563747572\
65080000000d00000000000000636f6e74726f6c766563746f721800000000000000636f6e74726f6c766563746f722e6d6f64656c5f68696e7408\
0000000500000000000000\
6c6c616d611900000000000000636f6e74726f6c766563746f722e6c617965725f636f756e7405000000020000000b00000000000000646972656374696f\
6e2e310100000003000000000000000000000000000000000000000b00000000000000646972656374696f6e2e330100000003000000000000000000000020\
000000000000000000000000803f000000c00000003f00000000000000000000000000000000000000000000803e00004040000080bf000000000000000000\
0000000000000000000000";

pub fn written() -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).expect("a hexadecimal digit") as u8;
    WRITTEN.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) * 16 + digit(pair[1])).collect()
}

fn vector() -> ControlVector {
    let directions = [(1, vec![1.0, -2.0, 0.5]), (3, vec![0.25, 3.0, -1.0])].into();
    ControlVector { model_hint: "llama".to_owned(), directions }
}

#[test]
fn control_vector_is_the_file_of_the_gguf_package() {
    let dir = temp();
    let path = dir.path().join("v.gguf");
    vector().write(&path).expect("writes");
    assert_eq!(fs::read(&path).expect("reads"), written());
    assert_eq!(ControlVector::read(&path).expect("a control vector"), vector());
    let file = Gguf::read(&path).expect("a GGUF file");
    assert_eq!(file.metadata["controlvector.layer_count"], Value::Signed(2));
    assert_eq!(file.entries["direction.3"].dims, [3]);
}

#[test]
fn control_vector_has_no_place_for_block_0() {
    let dir = temp();
    let mut vector = vector();
    vector.directions.insert(0, vec![0.0; 3]);
    let error = vector.write(dir.path().join("v.gguf")).expect_err("refused").to_string();
    assert!(error.contains("v.gguf") && error.contains("block 0"), "{error}");
    assert!(!dir.path().join("v.gguf").exists());
}

/// The written file with the bytes at every occurrence of `from` replaced, which keeps its length.
fn changed(from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = written();
    let found: Vec<usize> = (0..bytes.len() - from.len()).filter(|&i| bytes[i..].starts_with(from)).collect();
    assert!(!found.is_empty() && from.len() == to.len());
    found.into_iter().for_each(|i| bytes[i..i + to.len()].copy_from_slice(to));
    bytes
}

fn refused(dir: &Path, bytes: &[u8]) -> String {
    let path = dir.join("bad.gguf");
    fs::write(&path, bytes).expect("writes");
    let error = ControlVector::read(&path).expect_err("refused").to_string();
    assert!(error.contains("bad.gguf") && error.contains("expected"), "{error}");
    error
}

#[test]
fn damaged_gguf_files_are_refused_by_field() {
    let dir = temp();
    let name = |name: &str| [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
    let entry = |name_: &str, dims: u32, len: u64, kind: u32, offset: u64| {
        [&name(name_)[..], &dims.to_le_bytes(), &len.to_le_bytes(), &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
    };
    let first = entry("direction.1", 1, 3, 0, 0);
    let third = entry("direction.3", 1, 3, 0, 32);
    let layer_count = [&name("controlvector.layer_count")[..], &5u32.to_le_bytes()].concat();
    for (bytes, expected) in [
        (changed(b"GGUF", b"GGUX"), "magic: expected GGUF, found GGUX"),
        (changed(b"GGUF\x03", b"GGUF\x01"), "version: expected 2 or 3"),
        (changed(b"GGUF\x03\0\0\0\x02", b"GGUF\x03\0\0\0\xff"), "tensor_count: expected at most"),
        (
            changed(b"general.architecture", b"general.architecturs"),
            "general.architecture: expected a text, found nothing",
        ),
        (changed(b"\x0d\0\0\0\0\0\0\0controlvector", b"\x0d\0\0\0\0\0\0\0controlvectar"), "found controlvectar"),
        (changed(&first, &entry("direction.0", 1, 3, 0, 0)), "direction.N, N from 1 on, found direction.0"),
        (changed(&first, &entry("direction.x", 1, 3, 0, 0)), "found direction.x"),
        (changed(&first, &entry("directian.1", 1, 3, 0, 0)), "found directian.1"),
        (
            changed(&first, &entry("direction.3", 1, 3, 0, 0)),
            "direction.3: expected one tensor of this name, found two",
        ),
        (changed(&first, &entry("direction.1", 1, 3, 28, 0)), "direction.1: expected the type F32, found F64"),
        (changed(&first, &entry("direction.1", 1, 3, 99, 0)), "found type 99"),
        (changed(&first, &entry("direction.1", 5, 3, 0, 0)), "expected 1 to 4 dimensions, found 5"),
        (changed(&first, &entry("direction.1", 1, 2, 0, 0)), "expected a vector of 2 elements"),
        (changed(&first, &entry("direction.1", 1, u64::MAX, 0, 0)), "direction.1: expected at most 80 elements"),
        (changed(&third, &entry("direction.3", 1, 3, 0, 31)), "expected an offset that is a multiple of 32, found 31"),
        (changed(&third, &entry("direction.3", 1, 3, 0, 64)), "direction.3: expected data within the file"),
        (changed(&third, &entry("direction.3", 1, 3, 0, u64::MAX - 31)), "direction.3: expected"),
        (
            changed(&layer_count, &[&name("controlvector.layer_count")[..], &13u32.to_le_bytes()].concat()),
            "a type from 0 to 12",
        ),
        (changed(&0.25f32.to_le_bytes(), &f32::NAN.to_le_bytes()), "direction.3: expected finite elements, found NaN"),
    ] {
        let error = refused(dir.path(), &bytes);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // Cut anywhere before its data ends, it is refused.
    let whole = written();
    for len in 0..288 {
        refused(dir.path(), &whole[..len]);
    }
}
