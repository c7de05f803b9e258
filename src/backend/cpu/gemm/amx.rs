//! The microkernels of the matrix product in AMX: bfloat16 in, single precision out.
//!
//! An element of the operands is a pair of bfloat16 along k. A tile register has 16 rows of 64 bytes: 16 rows of the
//! result, of 16 pairs along k, or 16 pairs along k, of 16 columns. One instruction multiplies 16 rows by 16 columns over
//! 32 elements of k: even and odd elements are summed up apart, and then added to the result. Subnormal numbers count
//! as 0 (Intel, Architecture Instruction Set Extensions Programming Reference, TDPBF16PS).
//!
//! The instructions are written out since the compiler's own are not stable yet. A kernel is one `asm!` block from the first
//! load to the last store: the language promises nothing of tile registers between two. [`block`] lets something else be done
//! in the midst of a product, which it calls from within.
//!
//! Figures here are those of two cores of a Xeon with AMX, 2026-11-28, of a draft of these kernels.

#[cfg(all(test, target_os = "linux"))]
pub mod emulator;

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::offset_of;

use super::microkernel::{Alongside, Microkernel, PAIR_STEP, PIECES, TileOperands};

/// What LDTILECFG loads: the shapes of the eight tile registers.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// All registers are whole, but those that hold rows of the result or of the first operand have `rows`.
    const fn of(rows: u8) -> Self {
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut register = 0;
        while register < 8 {
            shapes.row_bytes[register] = 64;
            shapes.rows[register] = if register < 6 { rows } else { 16 };
            register += 1;
        }
        shapes
    }

    /// # Safety
    /// The CPU has AMX, and this process may use it.
    #[inline(always)]
    unsafe fn load(&self) {
        // SAFETY: reads the 64 bytes of `self`; tile registers are nobody else's.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) self, options(nostack, readonly)) };
    }
}

static WHOLE: Shapes = Shapes::of(16);

thread_local! {
    /// Guards that live on this thread.
    static TILE_USERS: Cell<usize> = const { Cell::new(0) };
}

/// While it lives, this thread has tiles.
pub struct AmxGuard(PhantomData<*const ()>);

impl AmxGuard {
    /// # Safety
    /// The CPU has AMX, and this process may use it.
    pub unsafe fn new() -> Self {
        if TILE_USERS.replace(TILE_USERS.get() + 1) == 0 {
            // SAFETY: the caller's promise.
            unsafe { WHOLE.load() };
        }
        Self(PhantomData)
    }
}

impl Drop for AmxGuard {
    fn drop(&mut self) {
        if TILE_USERS.replace(TILE_USERS.get() - 1) == 1 {
            // SAFETY: there are tiles, or this would not be. Without their state a thread is cheaper to suspend.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

macro_rules! kernels {
    ($($name:ident: { $($zero:literal)* } { $($load:literal)* } { $($step:literal)* } { $($store:literal)* })*) => {
        $(
        /// # Safety
        /// This thread has tiles ([`AmxGuard`]) and the operands are as the name says; see [`heights`].
        unsafe fn $name(operands: TileOperands<f32>) {
            let TileOperands {
                k,
                broadcast: b,
                broadcast_row: b_row,
                broadcast_k: _,
                vector: v,
                vector_k: v_k,
                out: c,
                out_row: c_row,
                add,
            } = operands;
            debug_assert!(k > 0 && k.is_multiple_of(PAIR_STEP), "amx: {k} pairs, tiles of {PAIR_STEP}");
            // SAFETY: the caller's promise. The second 16 rows, where there are any, lie behind the first.
            unsafe {
                asm!(
                    "test {add}, {add}",
                    "jnz 2f",
                    $($zero,)*
                    "jmp 3f",
                    "2:",
                    $($load,)*
                    "3:",
                    $($step,)*
                    "add {b0}, 64",
                    "add {b1}, 64",
                    "add {v}, {v_step}",
                    "dec {steps}",
                    "jnz 3b",
                    $($store,)*
                    "/* {c1} */",
                    steps = inout(reg) k / PAIR_STEP => _,
                    add = in(reg) usize::from(add),
                    b0 = inout(reg) b => _,
                    b1 = inout(reg) b.wrapping_add(16 * b_row) => _,
                    b_row = in(reg) 4 * b_row,
                    v = inout(reg) v => _,
                    v_row = in(reg) 4 * v_k,
                    v_step = in(reg) 4 * PAIR_STEP * v_k,
                    c0 = in(reg) c,
                    c1 = in(reg) c.wrapping_add(16 * c_row),
                    c_row = in(reg) 4 * c_row,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        })*
    };
}
kernels! {
    rows_32_columns_32:
        { "tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3" }
        {
            "tileloadd tmm0, [{c0} + {c_row}*1]"
            "tileloadd tmm1, [{c0} + {c_row}*1 + 64]"
            "tileloadd tmm2, [{c1} + {c_row}*1]"
            "tileloadd tmm3, [{c1} + {c_row}*1 + 64]"
        }
        {
            "tileloadd tmm4, [{b0} + {b_row}*1]"
            "tileloadd tmm6, [{v} + {v_row}*1]"
            "tdpbf16ps tmm0, tmm4, tmm6"
            "tileloadd tmm7, [{v} + {v_row}*1 + 64]"
            "tdpbf16ps tmm1, tmm4, tmm7"
            "tileloadd tmm5, [{b1} + {b_row}*1]"
            "tdpbf16ps tmm2, tmm5, tmm6"
            "tdpbf16ps tmm3, tmm5, tmm7"
        }
        {
            "tilestored [{c0} + {c_row}*1], tmm0"
            "tilestored [{c0} + {c_row}*1 + 64], tmm1"
            "tilestored [{c1} + {c_row}*1], tmm2"
            "tilestored [{c1} + {c_row}*1 + 64], tmm3"
        }
    rows_32_columns_16:
        { "tilezero tmm0" "tilezero tmm2" }
        { "tileloadd tmm0, [{c0} + {c_row}*1]" "tileloadd tmm2, [{c1} + {c_row}*1]" }
        {
            "tileloadd tmm6, [{v} + {v_row}*1]"
            "tileloadd tmm4, [{b0} + {b_row}*1]"
            "tdpbf16ps tmm0, tmm4, tmm6"
            "tileloadd tmm5, [{b1} + {b_row}*1]"
            "tdpbf16ps tmm2, tmm5, tmm6"
        }
        { "tilestored [{c0} + {c_row}*1], tmm0" "tilestored [{c1} + {c_row}*1], tmm2" }
    rows_16_columns_32:
        { "tilezero tmm0" "tilezero tmm1" }
        { "tileloadd tmm0, [{c0} + {c_row}*1]" "tileloadd tmm1, [{c0} + {c_row}*1 + 64]" }
        {
            "tileloadd tmm4, [{b0} + {b_row}*1]"
            "tileloadd tmm6, [{v} + {v_row}*1]"
            "tdpbf16ps tmm0, tmm4, tmm6"
            "tileloadd tmm7, [{v} + {v_row}*1 + 64]"
            "tdpbf16ps tmm1, tmm4, tmm7"
        }
        { "tilestored [{c0} + {c_row}*1], tmm0" "tilestored [{c0} + {c_row}*1 + 64], tmm1" }
    rows_16_columns_16:
        { "tilezero tmm0" }
        { "tileloadd tmm0, [{c0} + {c_row}*1]" }
        {
            "tileloadd tmm4, [{b0} + {b_row}*1]"
            "tileloadd tmm6, [{v} + {v_row}*1]"
            "tdpbf16ps tmm0, tmm4, tmm6"
        }
        { "tilestored [{c0} + {c_row}*1], tmm0" }
}

/// Steps of k before each piece of what is done alongside: by then the tile stores of the block before have left the core.
const BEFORE_PIECE: usize = 2;

/// What the kernel of a block reads again after every call, for which registers may be lost. Distances in bytes.
#[repr(C)]
struct Frame<'a> {
    out: *mut f32,
    out_row: usize,
    add: usize,
    broadcast_row: usize,
    /// From the broadcast operand to what is prefetched.
    ahead: usize,
    /// Steps along k before each piece, and behind the last.
    steps: [usize; PIECES + 1],
    /// The next piece.
    piece: usize,
    alongside: Option<&'a dyn Fn(usize)>,
}

/// Does a piece of what is done alongside. It has no instruction of AMX, nor has what it calls, so that tiles stay; a panic
/// ends the process.
unsafe extern "sysv64" fn do_piece(frame: *const Frame<'_>, piece: usize) {
    // SAFETY: the kernel's own.
    if let Some(alongside) = unsafe { &*frame }.alongside {
        alongside(piece);
    }
}

/// Eight lines of what follows the sixteen in the panel at `r13`.
macro_rules! panel_ahead {
    ($($at:literal)*) => { concat!($("prefetcht0 [r13 + ", $at, "]\n"),*) };
}

/// Kernels of 32 rows and 32 columns over a packed panel, whose next step they prefetch: for nothing where the first level
/// keeps it, and for 1.45 of the rate where a neighbour on the core takes from the cache. Each prefetches the same elements
/// of so many other rows into the second level.
macro_rules! block_kernels {
    ($($name:ident: { $($first:literal)* } { $($second:literal)* } { $($third:literal)* } { $($fourth:literal)* })*) => {
        $(
        /// # Safety
        /// As for [`block`], with the distances of `frame`.
        unsafe fn $name(broadcast: *const f32, vector: *const f32, frame: &mut Frame<'_>) {
            // SAFETY: the caller's promise; what is prefetched need not exist. The stack is aligned for a call, and all that
            // one may change is said to be.
            unsafe {
                asm!(
                    "mov rax, [r15 + {out}]",
                    "mov rcx, [r15 + {out_row}]",
                    "mov rdx, rcx",
                    "shl rdx, 4",
                    "add rdx, rax",
                    "cmp qword ptr [r15 + {add}], 0",
                    "jne 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [rax + rcx*1]",
                    "tileloadd tmm1, [rax + rcx*1 + 64]",
                    "tileloadd tmm2, [rdx + rcx*1]",
                    "tileloadd tmm3, [rdx + rcx*1 + 64]",
                    // What calls may have changed: rows of the broadcast operand are at rax, the second 16 begin at rcx.
                    "3:",
                    "mov rax, [r15 + {broadcast_row}]",
                    "mov rcx, rax",
                    "shl rcx, 4",
                    "add rcx, r12",
                    "mov rdx, 128",
                    "lea r8, [rax + 2*rax]",
                    "lea r9, [rax + 4*rax]",
                    "lea r10, [r8 + 4*rax]",
                    "mov rsi, [r15 + {ahead}]",
                    "add rsi, r12",
                    "mov rdi, [r15 + {piece}]",
                    "mov r14, [r15 + 8*rdi + {steps}]",
                    "test r14, r14",
                    "jz 5f",
                    "4:",
                    "tileloadd tmm4, [r12 + rax*1]",
                    $($first,)*
                    panel_ahead!(2048 2112 2176 2240 2304 2368 2432 2496),
                    "tileloadd tmm6, [r13 + rdx*1]",
                    $($second,)*
                    panel_ahead!(2560 2624 2688 2752 2816 2880 2944 3008),
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [r13 + rdx*1 + 64]",
                    $($third,)*
                    panel_ahead!(3072 3136 3200 3264 3328 3392 3456 3520),
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [rcx + rax*1]",
                    $($fourth,)*
                    panel_ahead!(3584 3648 3712 3776 3840 3904 3968 4032),
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add r12, 64",
                    "add rcx, 64",
                    "add rsi, 64",
                    "add r13, 2048",
                    "dec r14",
                    "jnz 4b",
                    "5:",
                    "mov rsi, [r15 + {piece}]",
                    "cmp rsi, {pieces}",
                    "je 6f",
                    "lea rax, [rsi + 1]",
                    "mov [r15 + {piece}], rax",
                    "mov rdi, r15",
                    "call {do_piece}",
                    "jmp 3b",
                    "6:",
                    "mov rax, [r15 + {out}]",
                    "mov rcx, [r15 + {out_row}]",
                    "mov rdx, rcx",
                    "shl rdx, 4",
                    "add rdx, rax",
                    "tilestored [rax + rcx*1], tmm0",
                    "tilestored [rax + rcx*1 + 64], tmm1",
                    "tilestored [rdx + rcx*1], tmm2",
                    "tilestored [rdx + rcx*1 + 64], tmm3",
                    out = const offset_of!(Frame<'_>, out),
                    out_row = const offset_of!(Frame<'_>, out_row),
                    add = const offset_of!(Frame<'_>, add),
                    broadcast_row = const offset_of!(Frame<'_>, broadcast_row),
                    ahead = const offset_of!(Frame<'_>, ahead),
                    steps = const offset_of!(Frame<'_>, steps),
                    piece = const offset_of!(Frame<'_>, piece),
                    pieces = const PIECES,
                    do_piece = sym do_piece,
                    inout("r12") broadcast => _,
                    inout("r13") vector => _,
                    out("r14") _,
                    in("r15") frame,
                    clobber_abi("sysv64"),
                );
            }
        })*
    };
}
block_kernels! {
    block_ahead_0: { } { } { } { }
    block_ahead_2: { "prefetcht1 [rsi]" } { "prefetcht1 [rsi + rax]" } { } { }
    block_ahead_4: { "prefetcht1 [rsi]" } { "prefetcht1 [rsi + rax]" } { "prefetcht1 [rsi + 2*rax]" } { "prefetcht1 [rsi + r8]" }
    block_ahead_8:
        { "prefetcht1 [rsi]" "prefetcht1 [rsi + 4*rax]" }
        { "prefetcht1 [rsi + rax]" "prefetcht1 [rsi + r9]" }
        { "prefetcht1 [rsi + 2*rax]" "prefetcht1 [rsi + 2*r8]" }
        { "prefetcht1 [rsi + r8]" "prefetcht1 [rsi + r10]" }
}

/// A block of two tiles each way over a packed panel: `out [32, 32] (+)= broadcast [32, k] vector [k, 32]`.
///
/// # Safety
/// This thread has tiles ([`AmxGuard`]), the operands are as large, those that the name says contiguous, and `k` is a positive
/// multiple of [`PAIR_STEP`].
pub unsafe fn block(operands: TileOperands<f32>, alongside: Alongside<'_, f32>) {
    let TileOperands { k, broadcast, broadcast_row, vector, out, out_row, add, .. } = operands;
    debug_assert!(k > 0 && k.is_multiple_of(PAIR_STEP), "amx: {k} pairs, tiles of {PAIR_STEP}");
    let (ahead, rows) = alongside.ahead.unwrap_or((broadcast, 0));
    let mut steps = [0; PIECES + 1];
    let mut rest = k / PAIR_STEP;
    if alongside.work.is_some() {
        for steps in &mut steps[..PIECES] {
            *steps = BEFORE_PIECE.min(rest - 1);
            rest -= *steps;
        }
    }
    steps[PIECES] = rest;
    let mut frame = Frame {
        out,
        out_row: 4 * out_row,
        add: usize::from(add),
        broadcast_row: 4 * broadcast_row,
        ahead: ahead.addr().wrapping_sub(broadcast.addr()),
        steps,
        piece: if alongside.work.is_some() { 0 } else { PIECES },
        alongside: alongside.work,
    };
    let kernel = match rows {
        0 => block_ahead_0,
        1..=2 => block_ahead_2,
        3..=4 => block_ahead_4,
        _ => block_ahead_8,
    };
    // SAFETY: the caller's promise.
    unsafe { kernel(broadcast, vector, &mut frame) };
}

/// As the kernels of 16 rows, with `ROWS` instead, and `VECTORS` of 16 columns.
///
/// # Safety
/// As for them.
unsafe fn few<const ROWS: u8, const VECTORS: usize>(operands: TileOperands<f32>) {
    let kernel = if VECTORS == 2 { rows_16_columns_32 } else { rows_16_columns_16 };
    // SAFETY: the caller's promise; registers of fewer rows touch fewer.
    unsafe {
        const { &Shapes::of(ROWS) }.load();
        kernel(operands);
        WHOLE.load();
    }
}

/// The kernels over `VECTORS` of 16 columns, from the tallest to one row. Elements of both operands are pairs, those of
/// the broadcast operand contiguous along k; `k` is a positive multiple of [`PAIR_STEP`].
pub const fn heights<const VECTORS: usize>() -> [(usize, Microkernel<f32>); 6] {
    let [tall, whole]: [Microkernel<f32>; 2] = match VECTORS {
        2 => [rows_32_columns_32, rows_16_columns_32],
        _ => [rows_32_columns_16, rows_16_columns_16],
    };
    [
        (32, tall),
        (16, whole),
        (8, few::<8, VECTORS>),
        (4, few::<4, VECTORS>),
        (2, few::<2, VECTORS>),
        (1, few::<1, VECTORS>),
    ]
}
