//! Groups made of rows.

use super::super::aligned::prefetch;
use super::{COLUMNS, Layout, UNIT, WINDOW, scale_lane};
use crate::quantization::{BlockFormat, QuantizedMatrix, Scales, five_bits, q3_k_scales};

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
                    (BlockFormat::Q2K, _) => {
                        let (factors, parts) = scales.split_at_mut(4 * COLUMNS);
                        inline::<2>(factors, column, &block[80..]);
                        inline::<1>(parts, column, block);
                    }
                    (BlockFormat::Q3K | BlockFormat::Q6K, _) => {
                        let (factor, parts) = scales.split_at_mut(2 * COLUMNS);
                        inline::<2>(factor, column, &block[format.halves()[0]..]);
                        match format {
                            BlockFormat::Q3K => inline::<1>(parts, column, &q3_k_scales(block).map(i8::cast_unsigned)),
                            _ => inline::<1>(parts, column, &block[192..]),
                        }
                    }
                    (BlockFormat::Q4K | BlockFormat::Q5K, _) => inline::<4>(scales, column, block),
                    _ => inline::<2>(scales, column, block),
                }
                for (index, unit) in units.chunks_exact_mut(layout.unit).enumerate() {
                    store(unit, layout.bits(), column, &codes(format, block, index));
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
        BlockFormat::Q4_0 | BlockFormat::Q4_1 => {
            let (low, high) = codes.split_at_mut(UNIT / 2);
            for ((low, high), byte) in low.iter_mut().zip(high).zip(sixteen(2 * format.halves().len())) {
                (*low, *high) = (byte & 15, byte >> 4);
            }
        }
        BlockFormat::Q5_0 | BlockFormat::Q5_1 => {
            codes = five_bits(block[2 * format.halves().len()..].first_chunk().expect("a block's codes"));
        }
        BlockFormat::Q2K | BlockFormat::Q3K => {
            let first = if format == BlockFormat::Q2K { 16 } else { 32 };
            let (bytes, shift) = (from(first + unit / 4 * UNIT), unit % 4 * 2);
            codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte >> shift & 3);
            if format == BlockFormat::Q3K {
                codes.iter_mut().zip(from(0)).for_each(|(code, thirds)| *code |= (thirds >> unit & 1) << 2);
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
    }
    codes
}

/// Puts the codes of a column, of so many bits, into its lanes.
fn store(unit: &mut [u8], bits: usize, column: usize, codes: &[u8; UNIT]) {
    match bits {
        2 => words::<2>(unit, column, codes),
        3 => words::<3>(unit, column, codes),
        4 => words::<4>(unit, column, codes),
        5 => words::<5>(unit, column, codes),
        6 => words::<6>(unit, column, codes),
        _ => {
            for (pair, of_all) in codes.as_chunks::<2>().0.iter().zip(unit.chunks_exact_mut(2 * COLUMNS)) {
                of_all[2 * column..][..2].copy_from_slice(pair);
            }
        }
    }
}

/// The same of `BITS` bits, 2 to 6: as many whole codes as a word of 32 bits holds, in each of the words of all columns, and for an odd
/// number of bits in halves of words behind them; in the bits that these have over the last code.
fn words<const BITS: usize>(unit: &mut [u8], column: usize, codes: &[u8; UNIT]) {
    let (each, whole) = (32 / BITS, BITS / 2);
    let (vector, lane) = (column / SIDE, column % SIDE * 8);
    for (i, all) in packed::<BITS>(codes).into_iter().enumerate() {
        let (last, lane) = ((all >> (15 * BITS)) as u32, lane + 4 * i);
        for word in 0..whole {
            let mut bits = (all >> (word * each * BITS)) as u32;
            if each * BITS < 32 {
                bits = bits & (u32::MAX >> 2) | last >> (2 * word) << 30;
            }
            unit[VECTOR * (COLUMNS / SIDE * word + vector) + lane..][..4].copy_from_slice(&bits.to_le_bytes());
        }
        if BITS % 2 == 1 {
            let half = (all >> (whole * each * BITS)) as u16 & (u16::MAX >> 1) | (last >> (2 * whole) << 15) as u16;
            let at = VECTOR * (COLUMNS / SIDE * whole + vector / 2) + lane + vector % 2 * 2;
            unit[at..][..2].copy_from_slice(&half.to_le_bytes());
        }
    }
}

/// Codes of even and of odd elements one after another, the first lowest.
fn packed<const BITS: usize>(codes: &[u8; UNIT]) -> [u128; 2] {
    let mut all = [0; 2];
    for (i, eight) in codes.as_chunks::<8>().0.iter().enumerate() {
        let eight = u64::from_le_bytes(*eight);
        for (all, eight) in all.iter_mut().zip([eight, eight >> 8]) {
            // Four codes in numbers of 16 bits become two in numbers of 32, and then one number.
            let low = |bits: usize, every: u64| ((1 << bits) - 1) * every;
            let four = eight & low(BITS, 0x0001_0001_0001_0001);
            let two = (four | four >> (16 - BITS)) & low(2 * BITS, 0x0000_0001_0000_0001);
            *all |= u128::from((two | two >> (32 - 2 * BITS)) & low(4 * BITS, 1)) << (4 * BITS * i);
        }
    }
    all
}
