//! TensorBoard's event files, written: scalars by step.
//!
//! A file is a sequence of TFRecords, each `length u64, masked CRC32C of those 8 bytes, data, masked CRC32C of data`, all
//! little-endian; the data is an `Event` of TensorFlow's `event.proto`, whose scalars are `Summary.Value.simple_value`, f32.
//! Readers find a file by `tfevents` in its name.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::atomic;
use crate::{Error, Result};

/// Name of the file in a run's directory.
pub const NAME: &str = "events.out.tfevents.llamaprobe";
/// What the first event says of the format.
const VERSION: &[u8] = b"brain.Event:2";
/// Bytes of a record around its data: length and CRC before it, CRC behind it.
const BEFORE: usize = 12;
const BEHIND: usize = 4;

/// An event file, open for appending.
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Opens `dir/`[`NAME`], which need not exist. Of the events that are there, those before the first of a step after
    /// `step` stay; a record that is torn or damaged, and what is behind it, never does.
    ///
    /// # Errors
    /// The file cannot be read, replaced or opened.
    pub fn open(dir: &Path, step: u64, wall_time: f64) -> Result<Self> {
        let path = dir.join(NAME);
        let mut bytes = atomic::read_if_there(&path)?.unwrap_or_default();
        let mut retained = 0;
        while let Some((data, length)) = record(&bytes[retained..])
            && step_of(data).is_some_and(|of_event| of_event <= step)
        {
            retained += length;
        }
        if retained == 0 || retained < bytes.len() {
            bytes.truncate(retained);
            if retained == 0 {
                let mut version = event(wall_time, 0);
                field(&mut version, 3, VERSION);
                bytes = framed(&version);
            }
            atomic::write(&path, &bytes)?;
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(Self { file, path })
    }

    /// Appends the scalars of a step in one write; `wall_time` is in seconds since 1970.
    ///
    /// # Errors
    /// The write fails.
    pub fn append(&mut self, step: u64, wall_time: f64, scalars: &[(String, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut of_tag = Vec::new();
            field(&mut of_tag, 1, tag.as_bytes());
            of_tag.push(2 << 3 | FIXED32);
            of_tag.extend((*value as f32).to_le_bytes());
            field(&mut summary, 1, &of_tag);
        }
        let mut data = event(wall_time, step);
        field(&mut data, 5, &summary);
        self.file.write_all(&framed(&data)).map_err(Error::io("append to", &self.path))
    }
}

// Wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// The beginning of an event: its time and its step.
fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut data = vec![1 << 3 | FIXED64];
    data.extend(wall_time.to_le_bytes());
    data.push(2 << 3 | VARINT);
    varint(&mut data, step);
    data
}

/// A field of bytes, a text or a message.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | BYTES);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The step of an event as written here: the time comes first, then the step.
fn step_of(data: &[u8]) -> Option<u64> {
    let rest = data.strip_prefix(&[1 << 3 | FIXED64])?.get(8..)?.strip_prefix(&[2 << 3 | VARINT])?;
    let mut step = 0;
    for (i, &byte) in rest.iter().take(9).enumerate() {
        step |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some(step);
        }
    }
    None
}

/// A record around data.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// The data of the first record, and the record's length; none if it is not whole.
fn record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let length = usize::try_from(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?)).ok()?;
    let end = length.checked_add(BEFORE)?;
    let (data, crc) = (bytes.get(BEFORE..end)?, bytes.get(end..end.checked_add(BEHIND)?)?);
    (crc == masked(data).to_le_bytes()).then_some((data, end + BEHIND))
}

/// A CRC as TFRecords have it, masked since a CRC of data with CRCs in it is weak.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC32C (Castagnoli), bit by bit: events are few and short.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !data.iter().fold(!0, |crc: u32, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_that_of_rfc_3720() {
        // Appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn events_after_the_step_and_torn_ones_are_dropped() {
        let dir = tempfile::tempdir().expect("a directory");
        let scalar = |value: f64| vec![("train/loss".to_owned(), value)];
        let mut file = EventFile::open(dir.path(), 0, 1.0).expect("a file");
        for step in [1, 127, 128, 300] {
            file.append(step, 2.0, &scalar(step as f64)).expect("an event");
        }
        let path = dir.path().join(NAME);
        let steps = || {
            let (bytes, mut at, mut steps) = (std::fs::read(&path).expect("the file"), 0, Vec::new());
            while let Some((data, length)) = record(&bytes[at..]) {
                steps.push(step_of(data).expect("a step"));
                at += length;
            }
            assert_eq!(at, bytes.len(), "whole records");
            steps
        };
        assert_eq!(steps(), [0, 1, 127, 128, 300]);
        let whole = std::fs::read(&path).expect("the file");
        std::fs::write(&path, &whole[..whole.len() - 3]).expect("write");
        EventFile::open(dir.path(), 1000, 3.0).expect("a file");
        assert_eq!(steps(), [0, 1, 127, 128]);
        EventFile::open(dir.path(), 127, 3.0).expect("a file");
        assert_eq!(steps(), [0, 1, 127]);
        std::fs::write(&path, b"something else").expect("write");
        EventFile::open(dir.path(), 127, 3.0).expect("a file");
        assert_eq!(steps(), [0]);
    }
}
