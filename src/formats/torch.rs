//! Tensors as `torch.save` writes them: a zip of a pickle and of the storages that it names.
//!
//! A pickle is a program. Of its instructions and of what they may call, only those are known here that a dictionary of
//! tensors needs; any other is an error that names it, and nothing is ever run.

mod pickle;
mod zip;

use std::collections::HashMap;
use std::path::Path;

use ::safetensors::serialize;
use ::safetensors::tensor::TensorView;

use super::safetensors::{Bytes, Checkpoint, Dtype, Loading};
use crate::{Error, Result};
use pickle::Tensor;

/// What a file is refused for: the part that is wrong, what was expected and what was found.
type Wrong = (String, String, String);

/// The tensors of a file, all in memory.
///
/// # Errors
/// No zip as torch 1.6 and later write it, a damaged one, or one that holds anything but a dictionary of tensors.
pub fn read(path: &Path) -> Result<Checkpoint> {
    let file = Bytes::open(path, Loading::Mapped)?;
    let refuse = |(part, expected, found): Wrong| Error::field(path, part, expected, found);
    let tensors = tensors(&file).map_err(refuse)?;
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).map_err(Error::file(path))?;
        Ok((name.as_str(), view))
    });
    let views: Vec<_> = views.collect::<Result<_>>()?;
    Checkpoint::from_bytes(path, Bytes::from(serialize(views, None::<HashMap<_, _>>).map_err(Error::file(path))?))
}

/// Name, dtype, shape and elements of every tensor.
type Found = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(file: &[u8]) -> Result<Found, Wrong> {
    let entries = zip::entries(file)?;
    let wrong = |found: &str| (zip::PART.to_owned(), "one data.pkl in a folder".to_owned(), found.to_owned());
    let mut pickles = entries.iter().filter(|(name, _)| name.ends_with("/data.pkl"));
    let (name, program) = pickles.next().ok_or_else(|| wrong("none"))?;
    if pickles.next().is_some() {
        return Err(wrong("two"));
    }
    let folder = name.trim_end_matches("data.pkl");
    if entries.get(&format!("{folder}byteorder")).is_some_and(|order| *order != b"little") {
        return Err(("byteorder".to_owned(), "little".to_owned(), "another".to_owned()));
    }
    let mut found = Vec::new();
    for (name, tensor) in pickle::state_dict(program)? {
        let record = format!("{folder}data/{}", tensor.storage.key);
        let Some(storage) = entries.get(&record) else {
            return Err((name, format!("its storage {record}"), "no such entry".to_owned()));
        };
        let data = elements(&tensor, storage).map_err(|(expected, found)| (name.clone(), expected, found))?;
        found.push((name, tensor.storage.dtype, tensor.size, data));
    }
    Ok(found)
}

/// A tensor's elements, one after another.
fn elements(tensor: &Tensor, storage: &[u8]) -> Result<Vec<u8>, (String, String)> {
    let Tensor { storage: of, offset, size, stride } = tensor;
    let width = of.dtype.bitsize() / 8;
    if of.len.checked_mul(width) != Some(storage.len()) {
        return Err((format!("a storage of {} elements of {width} bytes", of.len), format!("{} bytes", storage.len())));
    }
    let outside = || {
        let found = format!("size {size:?}, stride {stride:?} from {offset}");
        (format!("elements of its storage of {}, none of them twice", of.len), found)
    };
    let count = size.iter().try_fold(1usize, |count, &n| count.checked_mul(n)).ok_or_else(outside)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let last = size.iter().zip(stride).try_fold(*offset, |at, (n, step)| at.checked_add((n - 1).checked_mul(*step)?));
    if count > of.len || last.is_none_or(|last| last >= of.len) {
        return Err(outside());
    }
    let mut out = Vec::with_capacity(count * width);
    let mut index = vec![0; size.len()];
    for _ in 0..count {
        let at = offset + index.iter().zip(stride).map(|(i, step)| i * step).sum::<usize>();
        out.extend_from_slice(&storage[at * width..(at + 1) * width]);
        for (i, n) in index.iter_mut().zip(size).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Rng;

    /// A damaged program ends in an error or in tensors, whatever it was made to say; the checksum of the zip is not asked.
    #[test]
    fn pickle_that_is_damaged_is_refused_without_a_panic() {
        let file = include_bytes!("../../tests/golden/torch/state.bin");
        let entries = zip::entries(file).expect("a zip");
        let program = entries["state/data.pkl"];
        assert_eq!(pickle::state_dict(program).expect("a dictionary").len(), 10);
        let mut rng = Rng::new(5);
        let mut refused = 0;
        for _ in 0..4000 {
            let mut damaged = program.to_vec();
            for _ in 0..=rng.below(3) {
                let at = rng.below(damaged.len());
                match rng.below(3) {
                    0 => damaged[at] = rng.below(256) as u8,
                    1 => drop(damaged.remove(at)),
                    _ => damaged.insert(at, damaged[rng.below(damaged.len())]),
                }
            }
            match pickle::state_dict(&damaged) {
                Ok(found) => found.iter().for_each(|(_, tensor)| {
                    let _ = elements(tensor, entries["state/data/0"]);
                }),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 1000, "{refused}");
    }
}
