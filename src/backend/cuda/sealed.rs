//! Files that are kept between runs and taken only whole: a header of what they are, how long, and their digest.

use crate::hash::digest;

/// First bytes of a kind of file.
pub type Magic = [u8; 8];

/// Bytes of the header: the kind, the content's length (`u64`, little-endian), its SHA-256.
const HEADER: usize = 8 + 8 + 32;

/// A content as a file holds it.
pub fn seal(magic: &Magic, content: &[u8]) -> Vec<u8> {
    [&magic[..], &(content.len() as u64).to_le_bytes(), &digest([content]), content].concat()
}

/// The content of a file of this kind; none unless every byte is as it was written.
pub fn unseal<'a>(magic: &Magic, file: &'a [u8]) -> Option<&'a [u8]> {
    let (header, content) = file.split_at_checked(HEADER)?;
    let (kind, header) = header.split_at(magic.len());
    let (len, sum) = header.split_at(8);
    (kind == magic && len == (content.len() as u64).to_le_bytes() && sum == digest([content])).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_taken_only_whole() {
        let content: Vec<u8> = (0..200).collect();
        let file = seal(b"LPCUBIN1", &content);
        assert_eq!(super::unseal(b"LPCUBIN1", &file), Some(&content[..]));
        assert_eq!(super::unseal(b"LPCUBIN2", &file), None, "of another kind");
        let unseal = |file: &[u8]| super::unseal(b"LPCUBIN1", file).map(<[u8]>::to_vec);
        for len in 0..file.len() {
            assert_eq!(unseal(&file[..len]), None, "cut to {len} bytes");
        }
        assert_eq!(unseal(&[&file[..], &[0]].concat()), None, "one byte more");
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            assert_eq!(unseal(&damaged), None, "byte {at}");
        }
        assert_eq!(unseal(&content), None, "a bare content");
    }
}
