//! Groups made of rows.

use super::super::aligned::prefetch;
use super::{COLUMNS, Layout, UNIT, WINDOW, scale_lane};
use crate::quantization::{BlockFormat, QuantizedMatrix, Scales};

/// Bytes of a vector.
const VECTOR: usize = 64;
/// Elements along k of a row, at least, that are brought into a group before those of the next.
const ALONG: usize = 256;
/// Rows ahead of the current one that are prefetched.
const AHEAD: usize = 8;
/// Columns of which a vector has the codes.
const SIDE: usize = 8;

/// `out = ` the group of the rows from `first` on.
pub fn group(out: &mut [u8], matrix: &QuantizedMatrix<'_>, layout: Layout, first: usize) {
    let (format, per_row) = (matrix.format, matrix.columns / layout.block);
    let rows: [usize; COLUMNS] = std::array::from_fn(|i| matrix.stored_row((first + i).min(matrix.rows - 1)));
    let row_bytes = matrix.columns / format.block_values() * format.block_bytes();
    let row_codes = rows.map(|row| &matrix.codes[row * row_bytes..][..row_bytes]);
    let (head, blocks) = out.split_at_mut(layout.head);
    match matrix.scales {
        Scales::Nested { absmax, block: share, .. } => {
            windows(head, absmax, share as usize, rows.map(|row| row * per_row))
        }
        _ if format == BlockFormat::Int8Rows => fields(head, |column| matrix.absmax(rows[column]).to_le_bytes()),
        _ => {}
    }
    let bytes = row_bytes / per_row;
    // Some lines of a row at a time: rows may share sets of the cache.
    let some = (ALONG / layout.block).max(1);
    for (index, out) in blocks.chunks_mut(some * layout.block_bytes()).enumerate() {
        for (column, row) in row_codes.iter().enumerate() {
            // As many bytes of a row that comes soon, or of the first rows what comes next.
            let (ahead, to) = ((column + AHEAD) % COLUMNS, (column + AHEAD) / COLUMNS + index);
            let to = row.len().min(to * some * bytes);
            prefetch(&row_codes[ahead][to..row.len().min(to + some * bytes)]);
            let blocks = row[index * some * bytes..].chunks_exact(bytes).enumerate();
            for (out, (at, block)) in out.chunks_exact_mut(layout.block_bytes()).zip(blocks) {
                let (scales, units) = out.split_at_mut(COLUMNS * layout.scales);
                let stored = rows[column] * per_row + index * some + at;
                match (format, matrix.scales) {
                    (BlockFormat::Int8Rows, _) => {}
                    (BlockFormat::Nf4 { .. }, Scales::Nested { codes, .. }) => put(scales, column, [codes[stored]]),
                    (BlockFormat::Nf4 { .. }, _) => put(scales, column, matrix.absmax(stored).to_le_bytes()),
                    (BlockFormat::Q6K, _) => {
                        let (scale, sixteen) = scales.split_at_mut(2 * COLUMNS);
                        inline::<2>(scale, column, &block[208..]);
                        inline::<1>(sixteen, column, &block[192..]);
                    }
                    (BlockFormat::Q4K | BlockFormat::Q5K, _) => inline::<4>(scales, column, block),
                    (BlockFormat::Q8_0 | BlockFormat::Q4_0, _) => inline::<2>(scales, column, block),
                    (other, _) => unreachable!("interleaved: {other}"),
                }
                for (index, unit) in units.chunks_exact_mut(layout.unit).enumerate() {
                    store(unit, format, column, &codes(format, block, index));
                }
            }
        }
    }
}

/// Of each window of `share` blocks of rows that begin with these blocks of the matrix: the largest magnitude of the first block, the one
/// that comes next, and from which block of the row on that is.
fn windows(out: &mut [u8], absmax: &[f32], share: usize, rows: [usize; COLUMNS]) {
    for (window, out) in out.chunks_exact_mut(WINDOW).enumerate() {
        let (before, rest) = out.split_at_mut(WINDOW / 3);
        let (behind, from) = rest.split_at_mut(WINDOW / 3);
        let first = |column: usize| (rows[column] + window * share) / share;
        fields(before, |column| absmax[first(column)].to_le_bytes());
        fields(behind, |column| absmax[(first(column) + 1).min(absmax.len() - 1)].to_le_bytes());
        fields(from, |column| (((first(column) + 1) * share - rows[column]) as u32).to_le_bytes());
    }
}

/// Where the scale of a column is among those of all.
fn scale_at(column: usize) -> usize {
    column / 16 * 16 + scale_lane(column % 16)
}

/// A field of `N` bytes of all columns, in the order of scales.
fn fields<const N: usize>(out: &mut [u8], field: impl Fn(usize) -> [u8; N]) {
    (0..COLUMNS).for_each(|column| put(out, column, field(column)));
}

/// The field of a column.
fn put<const N: usize>(out: &mut [u8], column: usize, field: [u8; N]) {
    out.as_chunks_mut().0[scale_at(column)] = field;
}

/// What a block begins with: fields of `N` bytes, each of all columns.
fn inline<const N: usize>(out: &mut [u8], column: usize, block: &[u8]) {
    for (out, &field) in out.chunks_exact_mut(N * COLUMNS).zip(block.as_chunks::<N>().0) {
        put(out, column, field);
    }
}

/// The codes of a unit of a block, a byte each. (Loops: what arrays have of their own is not compiled to vectors.)
fn codes(format: BlockFormat, block: &[u8], unit: usize) -> [u8; UNIT] {
    let from = |at: usize| -> &[u8; UNIT] { block[at..].first_chunk().expect("a block's codes") };
    let sixteen = |at: usize| -> &[u8; UNIT / 2] { block[at..].first_chunk().expect("a block's codes") };
    let mut codes = [0; UNIT];
    // Those in the low or high halves of 32 bytes.
    let mut halves = |bytes: &[u8; UNIT], high: bool| {
        let shift = if high { 4 } else { 0 };
        codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte >> shift & 15);
    };
    match format {
        BlockFormat::Int8Rows => codes = *from(0),
        BlockFormat::Q8_0 => codes = *from(2),
        BlockFormat::Nf4 { .. } => {
            for (pair, byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(sixteen(UNIT / 2 * unit)) {
                *pair = [byte >> 4, byte & 15];
            }
        }
        BlockFormat::Q4_0 => {
            let (low, high) = codes.split_at_mut(UNIT / 2);
            for ((low, high), byte) in low.iter_mut().zip(high).zip(sixteen(2)) {
                (*low, *high) = (byte & 15, byte >> 4);
            }
        }
        BlockFormat::Q4K => halves(from(16 + unit / 2 * UNIT), unit % 2 == 1),
        BlockFormat::Q5K => {
            halves(from(48 + unit / 2 * UNIT), unit % 2 == 1);
            codes.iter_mut().zip(from(16)).for_each(|(code, fifths)| *code |= (fifths >> unit & 1) << 4);
        }
        BlockFormat::Q6K => {
            let (half, quarter) = (unit / 4, unit % 4);
            halves(from(64 * half + 32 * (quarter % 2)), quarter / 2 == 1);
            codes
                .iter_mut()
                .zip(from(128 + 32 * half))
                .for_each(|(code, high)| *code |= (high >> (2 * quarter) & 3) << 4);
        }
        other => unreachable!("interleaved: {other}"),
    }
    codes
}

/// Puts the codes of a column into its lanes.
fn store(unit: &mut [u8], format: BlockFormat, column: usize, codes: &[u8; UNIT]) {
    // Where the lanes of the column are in a vector of 8 columns.
    let lanes = column % SIDE * 8;
    match format {
        BlockFormat::Int8Rows | BlockFormat::Q8_0 => {
            for (pair, of_all) in codes.as_chunks::<2>().0.iter().zip(unit.chunks_exact_mut(2 * COLUMNS)) {
                of_all[2 * column..][..2].copy_from_slice(pair);
            }
        }
        _ => {
            let (fours, rest) = unit.split_at_mut(COLUMNS * UNIT / 2);
            for (codes, step) in codes.as_chunks::<16>().0.iter().zip(fours.chunks_exact_mut(8 * VECTOR)) {
                let at = column / SIDE * VECTOR + lanes;
                step[at..][..8].copy_from_slice(&packed::<4, 0>(codes));
            }
            match format {
                BlockFormat::Q5K => {
                    let fifths = packed::<1, 4>(codes);
                    rest[column / SIDE * (VECTOR / 2) + lanes / 2..][..4]
                        .copy_from_slice(&[fifths[0], fifths[1], fifths[4], fifths[5]]);
                }
                BlockFormat::Q6K => {
                    rest[column / SIDE * VECTOR + lanes..][..8].copy_from_slice(&packed::<2, 4>(codes));
                }
                _ => {}
            }
        }
    }
}

/// `BITS` bits of codes from bit `FROM` on, those of even ones in the first four bytes and of odd ones in the others, the first lowest.
fn packed<const BITS: usize, const FROM: usize>(codes: &[u8]) -> [u8; 8] {
    let mut lanes = [0u64; 2];
    for (i, eight) in codes.as_chunks::<8>().0.iter().enumerate() {
        let eight = u64::from_le_bytes(*eight) >> FROM;
        for (lane, eight) in lanes.iter_mut().zip([eight, eight >> 8]) {
            // Four codes in numbers of 16 bits become two in numbers of 32, and then one number.
            let low = |bits: usize, every: u64| ((1 << bits) - 1) * every;
            let four = eight & low(BITS, 0x0001_0001_0001_0001);
            let two = (four | four >> (16 - BITS)) & low(2 * BITS, 0x0000_0001_0000_0001);
            *lane |= ((two | two >> (32 - 2 * BITS)) & low(4 * BITS, 1)) << (4 * BITS * i);
        }
    }
    (lanes[1] << 32 | lanes[0]).to_le_bytes()
}
