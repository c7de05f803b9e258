//! The entries of a zip that holds its files as they are (APPNOTE.TXT of PKWARE, 4.3 and 4.5.3).

use std::collections::BTreeMap;

/// What errors here are about.
pub const PART: &str = "zip";

/// Part, expectation and finding.
type Wrong = (String, String, String);

fn wrong(expected: impl Into<String>, found: impl Into<String>) -> Wrong {
    (PART.to_owned(), expected.into(), found.into())
}

/// The beginning of a pickle as torch wrote it before it wrote zips.
const OLDER: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
/// The fixed part of the record that ends a zip.
const END: usize = 22;
/// Stands for a number that is given as one of 64 bits.
const LARGE: u64 = u32::MAX as u64;

/// A little-endian number of `N` bytes.
fn number<const N: usize>(file: &[u8], at: usize) -> Result<u64, Wrong> {
    let end = at.checked_add(N).filter(|&end| end <= file.len());
    let end = end.ok_or_else(|| wrong("a whole archive", "one that is cut short"))?;
    Ok(file[at..end].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
}

fn place(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Demands the four bytes that begin a record.
fn signed(file: &[u8], at: usize, signature: &[u8; 4]) -> Result<(), Wrong> {
    match file.get(at..).is_some_and(|rest| rest.starts_with(signature)) {
        true => Ok(()),
        false => Err(wrong("a whole archive", format!("no record at byte {at}"))),
    }
}

/// Every entry by its name, its checksum tested.
pub fn entries(file: &[u8]) -> Result<BTreeMap<String, &[u8]>, Wrong> {
    if file.starts_with(OLDER) {
        return Err(wrong("an archive of torch.save (torch 1.6 and later)", "the form of earlier releases"));
    }
    let (count, mut at) = directory(file)?;
    let mut found = BTreeMap::new();
    for _ in 0..count {
        signed(file, at, b"PK\x01\x02")?;
        let [flags, method] = [number::<2>(file, at + 8)?, number::<2>(file, at + 10)?];
        let [name, extra, comment] =
            [number::<2>(file, at + 28)?, number::<2>(file, at + 30)?, number::<2>(file, at + 32)?].map(place);
        let bytes = file.get(at + 46..at + 46 + name).ok_or_else(|| wrong("a whole archive", "a name cut short"))?;
        let shown = String::from_utf8_lossy(bytes).into_owned();
        if flags & 1 != 0 || method != 0 {
            return Err(wrong(format!("{shown} stored as it is"), format!("method {method}, flags {flags:#x}")));
        }
        let header = at + 46 + name;
        let sizes = [number::<4>(file, at + 24)?, number::<4>(file, at + 20)?, number::<4>(file, at + 42)?];
        let [size, packed, local] = large(file, header..header + extra, sizes)?;
        signed(file, local, b"PK\x03\x04")?;
        let start = local + 30 + place(number::<2>(file, local + 26)?) + place(number::<2>(file, local + 28)?);
        let data = start.checked_add(size).and_then(|end| file.get(start..end)).filter(|_| size == packed);
        let data = data.ok_or_else(|| wrong(format!("{shown} within the file"), format!("{size} bytes at {start}")))?;
        let (expected, sum) = (number::<4>(file, at + 16)?, u64::from(crc32(data)));
        if sum != expected {
            return Err(wrong(format!("{shown} with the checksum {expected:08x}"), format!("{sum:08x}")));
        }
        if found.insert(shown.clone(), data).is_some() {
            return Err(wrong(format!("{shown} once"), "twice"));
        }
        at = header + extra + comment;
    }
    Ok(found)
}

/// The number of entries, and where their list begins.
fn directory(file: &[u8]) -> Result<(u64, usize), Wrong> {
    let first = file.len().saturating_sub(END + usize::from(u16::MAX));
    let end = (first..(file.len() + 1).saturating_sub(END)).rev().find(|&at| file[at..].starts_with(b"PK\x05\x06"));
    let end = end.ok_or_else(|| wrong("an archive of torch.save", "a file that is none"))?;
    let locator = end.saturating_sub(20);
    if file[locator..].starts_with(b"PK\x06\x07") {
        let end = place(number::<8>(file, locator + 8)?);
        signed(file, end, b"PK\x06\x06")?;
        return Ok((number::<8>(file, end.saturating_add(32))?, place(number::<8>(file, end.saturating_add(48))?)));
    }
    Ok((number::<2>(file, end + 10)?, place(number::<4>(file, end + 16)?)))
}

/// Size, packed size and place, those that do not fit 32 bits from the extra fields.
fn large(file: &[u8], extra: std::ops::Range<usize>, numbers: [u64; 3]) -> Result<[usize; 3], Wrong> {
    let mut at = extra.start;
    while at + 4 <= extra.end {
        let [kind, size] = [number::<2>(file, at)?, number::<2>(file, at + 2)?];
        if kind == 1 {
            let mut next = at + 4;
            let mut whole = numbers;
            for number_ in whole.iter_mut().filter(|number| **number == LARGE) {
                *number_ = number::<8>(file, next)?;
                next += 8;
            }
            return Ok(whole.map(place));
        }
        at += 4 + place(size);
    }
    Ok(numbers.map(place))
}

/// The checksum of zip (ITU-T V.42).
fn crc32(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut rest, mut bit) = (byte as u32, 0);
            while bit < 8 {
                rest = if rest & 1 == 1 { 0xedb8_8320 ^ (rest >> 1) } else { rest >> 1 };
                bit += 1;
            }
            table[byte] = rest;
            byte += 1;
        }
        table
    };
    !data.iter().fold(!0, |sum, &byte| TABLE[((sum ^ u32::from(byte)) & 255) as usize] ^ (sum >> 8))
}
