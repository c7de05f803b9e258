//! Files of `torch.save` (`tests/golden/torch_files.py`): tensors as torch has them, and everything else refused.

use std::fs;
use std::path::PathBuf;

use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::formats::torch::read;

use crate::support::{golden, temp};

fn file(name: &str) -> PathBuf {
    golden("torch").join(name)
}

#[test]
fn torch_tensors_are_those_of_torch() {
    let (found, expected) = (read(&file("state.bin")).expect("reads"), Checkpoint::open(file("state.safetensors")));
    let expected = expected.expect("opens");
    assert!(found.len() == 10 && found.names().eq(expected.names()));
    for (found, expected) in found.iter().zip(expected.iter()) {
        assert_eq!((&found.name, found.dtype, &found.shape), (&expected.name, expected.dtype, &expected.shape));
        assert_eq!(found.data[..], expected.data[..], "{}", found.name);
    }
}

#[test]
fn torch_file_of_more_than_tensors_is_refused_by_name() {
    for (name, says) in [
        ("calls", "getenv"),
        ("nested", "state_dict: expected a tensor, found a dictionary"),
        ("list", "']'"),
        ("expanded", "a: expected elements of its storage"),
        ("older", "torch 1.6"),
        ("number", "'G'"),
    ] {
        let error = read(&file(&format!("{name}.bin"))).expect_err(name).to_string();
        assert!(error.contains(says) && error.contains(&format!("{name}.bin")), "{name}: {error}");
    }
}

/// No byte can change without an error or the same tensors, and no end can be missing.
#[test]
fn torch_file_that_is_damaged_is_refused() {
    let whole = fs::read(file("state.bin")).expect("a file");
    let tensors = |file: Checkpoint| file.iter().map(|t| (t.name, t.shape, t.data.to_vec())).collect::<Vec<_>>();
    let expected = tensors(read(&file("state.bin")).expect("reads"));
    let dir = temp();
    let path = dir.path().join("damaged.bin");
    let mut refused = 0;
    for at in (0..whole.len()).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        fs::write(&path, bytes).expect("written");
        match read(&path) {
            Ok(found) => assert!(tensors(found) == expected, "byte {at}"),
            Err(error) => {
                assert!(error.to_string().contains("damaged.bin"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > whole.len() / 12, "{refused} of {}", whole.len());
    for end in (0..whole.len() - 30).step_by(7) {
        fs::write(&path, &whole[..end]).expect("written");
        read(&path).expect_err("cut short");
    }
}
