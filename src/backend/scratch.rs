//! Memory of a GPU that operations take beside their operands, known before anything runs and without a device: workspaces, scratch,
//! tables of packs. `backend/cuda` takes what stands here, and no more (`tests/cuda_fake.rs`).

use super::PassSize;
use super::ops::{LinearDims, logit_chunks};

/// Smallest block of device memory, and the alignment of every block.
pub const ALIGN: usize = 256;
/// Blocks above this size are multiples of it.
pub const LARGE: usize = 1 << 20;
/// Bytes that cuBLASLt may use beside the operands; what NVIDIA recommends for Hopper.
pub const WORKSPACE: usize = 32 << 20;
/// Rows of a query block of the attention, and keys of a tile.
pub const BLOCK_ROWS: usize = 64;
/// Most LoRAs of a launch.
pub const TOGETHER: usize = 3;
/// Columns that a block of LoRA's wide products handles: as many as a part of a deep narrow one.
pub const COLUMNS: usize = 256;
/// Ranks that a block of LoRA's narrow products handles.
pub const RANKS: usize = 32;
/// Of the depth of a product that writes ranks, what a block takes, and the most blocks that share one so: of a deeper one a block takes
/// [`COLUMNS`].
pub const SHARE: usize = 128;
/// See [`SHARE`].
pub const SPLITS: usize = 32;
/// Fewest tickets that there is memory for.
const TICKETS: usize = 1024;
/// Parts into which a run's gradient is cut to be summed.
pub const NORM_PARTS: usize = 64;
/// Fields of a run's step.
pub const STEP_FIELDS: usize = 12;
/// Fewest rows and heads of a part of the work of a block of keys (`cuda/balance.rs`).
pub const MIN_PART_ROWS: usize = 256;
/// Most parts that share a block, of all heads: five for each multiprocessor of a large device.
pub const MOST_SHARED: usize = 5 * 132;

/// Bytes of the block that serves a request.
pub fn block_size(bytes: usize) -> usize {
    let unit = if bytes > LARGE { LARGE } else { ALIGN };
    bytes.max(1).next_multiple_of(unit)
}

/// Query blocks, and tiles of adapted rows and of keys, that packs of `rows` rows usually have no more of.
pub fn usual(rows: usize) -> [usize; 3] {
    [rows.div_ceil(BLOCK_ROWS) + rows.div_ceil(4 * BLOCK_ROWS), rows.div_ceil(8), rows.div_ceil(16)]
}

/// Entries of the tables of a pack of `rows` rows with the usual room.
fn usual_entries(rows: usize) -> usize {
    let [blocks, lora_tiles, tiles] = usual(rows);
    let of_blocks = blocks * (2 * BLOCK_ROWS + 2) + 2 * BLOCK_ROWS + 2 * rows.div_ceil(BLOCK_ROWS);
    13 * rows + 3 * lora_tiles + of_blocks + tiles * (BLOCK_ROWS + 8)
}

/// Blocks that share the depth of a product that writes ranks: as many whatever the pack, so that a row's sums are the same bits in any.
pub fn splits(depth: usize) -> usize {
    depth.div_ceil(if depth > SPLITS * SHARE { COLUMNS } else { SHARE }).max(1)
}

/// Whether blocks that make so many columns make parts of the depth of a product that reads them.
pub fn made_in_parts(depth: usize) -> bool {
    depth.is_multiple_of(COLUMNS) && splits(depth) == depth / COLUMNS
}

/// Number of tickets for so many tiles of LoRAs; few sizes, so that they seldom move.
pub fn lora_tickets(tiles: usize, rank: usize) -> usize {
    (TOGETHER * tiles * rank.div_ceil(RANKS)).next_power_of_two().max(TICKETS)
}

/// Most bytes of LoRA's split-K workspace, partial sums and tickets, of depths of at most `width` in a pass of so many rows. None
/// where no depth is split.
pub fn split_k_bytes(rows: usize, rank: usize, width: usize) -> Option<[usize; 2]> {
    // A smaller depth may have more splits, and a tile may have one row.
    let splits = splits(width).max(width.div_ceil(SHARE).min(SPLITS));
    let parts = TOGETHER * splits * rows * rank * size_of::<f32>();
    (rank > 0 && splits > 1).then(|| [parts, lora_tickets(rows, rank) * size_of::<i32>()])
}

/// Most parts of the work on keys that share a block, of all heads, in a pass of so many rows.
pub fn most_shared(rows: usize, heads: usize) -> usize {
    if rows * heads <= MIN_PART_ROWS {
        return 0;
    }
    // A part is longer than half of what it may be.
    let all = rows * rows.div_ceil(BLOCK_ROWS) * heads;
    (2 * all / MIN_PART_ROWS).min(MOST_SHARED)
}

/// Most bytes of the sums that parts leave, gradients of 64 keys and of their values each, and of their tickets, in a pass of so many
/// rows with so many heads of some width. None where there are no parts.
pub fn key_parts_bytes(rows: usize, [heads, head_dim]: [usize; 2]) -> Option<[usize; 2]> {
    let parts = most_shared(rows, heads);
    let sums = parts * 2 * BLOCK_ROWS * head_dim.next_multiple_of(16) * size_of::<f32>();
    // A part of 64 keys may be four blocks, with two tickets for each of two gradients.
    let tickets = (16 * parts).next_power_of_two().max(TICKETS);
    (parts > 0).then(|| [sums, tickets * size_of::<i32>()])
}

/// Logits of the largest chunk.
pub fn chunk_len(dims: LinearDims) -> usize {
    logit_chunks(dims).map(|(_, chunk)| chunk.rows).max().unwrap_or(0) * dims.output
}

/// Bytes of device memory that such passes take for themselves, with elements of these sizes.
pub fn scratch(pass: &PassSize, (acc, compute): (usize, usize)) -> usize {
    let PassSize { rows, backward_rows, labels, heads, vocab, rank, adapted, terms, runs, .. } = *pass;
    // Tables of a pass and of its output rows, in a training and in its evaluation.
    let tables = 2 * (usual_entries(rows) + usual_entries(labels));
    let mut blocks = vec![WORKSPACE, tables * size_of::<i32>()];
    blocks.extend(split_k_bytes(rows, rank, adapted).into_iter().flatten());
    if labels > 0 {
        let logits = chunk_len(LinearDims { rows: labels, input: 0, output: vocab });
        let queries = heads[0] * heads[1];
        blocks.extend(key_parts_bytes(backward_rows, heads).into_iter().flatten());
        // Logits and their gradients, d_z rounded, d_xa, that of a gate's and an up-projection's LoRA made with what these read, terms of a
        // gradient, parts of the norms, the steps' fields.
        blocks.extend([
            logits * acc,
            logits * compute,
            backward_rows * queries * compute,
            TOGETHER * backward_rows * rank * acc,
        ]);
        blocks.extend(made_in_parts(adapted).then_some(2 * backward_rows * rank * acc));
        blocks.extend((terms > 0).then_some(terms * compute));
        blocks.extend([runs * NORM_PARTS * acc, runs * STEP_FIELDS * acc]);
    }
    blocks.into_iter().map(block_size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_size_holds_what_is_asked() {
        for bytes in [0, 1, 255, 256, 257, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE + 3] {
            let block = block_size(bytes);
            assert!(block >= bytes && block.is_multiple_of(ALIGN) && block > 0);
            assert_eq!(block_size(block), block);
            assert!(block - bytes <= if bytes > LARGE { LARGE } else { ALIGN });
        }
    }

    /// Of a step of LLaMA-2-7B with LoRAs of rank 16, 512 tokens in bf16: the same in every build, with the feature `cuda` or without.
    #[test]
    fn scratch_of_a_step_is_known_without_a_device() {
        let pass = PassSize {
            rows: 512,
            backward_rows: 512,
            labels: 512,
            heads: [32, 128],
            vocab: 32000,
            rank: 16,
            adapted: 11008,
            terms: 3 * 512 * 4096,
            runs: 1,
            ..PassSize::default()
        };
        let tables = 2 * 2 * 4 * (13 * 512 + 3 * 64 + 10 * 130 + 128 + 16 + 32 * 72);
        let [lora, tickets] = [3 * 43 * 512 * 16 * 4, 2048 * 4];
        let [parts, part_tickets] = [660 * (64 << 10), 16384 * 4];
        let (logits, rounded) = (512 * 32000, 512 * 4096 * 2);
        let d_xa = [3 * 512 * 16 * 4, 2 * 512 * 16 * 4];
        let of_backward = [4 * logits, 2 * logits, rounded, d_xa[0], d_xa[1], 3 * 512 * 4096 * 2, 64 * 4, 12 * 4];
        let blocks = [&[32 << 20, tables, lora, tickets, parts, part_tickets], &of_backward[..]].concat();
        let up = |bytes: usize| bytes.next_multiple_of(if bytes > 1 << 20 { 1 << 20 } else { 256 });
        assert_eq!(scratch(&pass, (4, 2)), blocks.into_iter().map(up).sum::<usize>());
        // A forward has neither logits nor gradients.
        let forward = scratch(&PassSize { labels: 0, runs: 0, ..pass }, (4, 2));
        let tables = 2 * 4 * (13 * 512 + 3 * 64 + 10 * 130 + 128 + 16 + 32 * 72 + 128);
        assert_eq!(forward, [32 << 20, tables, lora, tickets].into_iter().map(up).sum::<usize>());
    }
}
