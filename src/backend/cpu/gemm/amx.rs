//! The microkernels of the matrix product in AMX: bfloat16 in, single precision out.
//!
//! An element of the operands is a pair of bfloat16 along k. A tile register has 16 rows of 64 bytes: 16 rows of the
//! result, of 16 pairs along k, or 16 pairs along k, of 16 columns. One instruction multiplies 16 rows by 16 columns over
//! 32 elements of k: even and odd elements are summed up apart, and then added to the result. Subnormal numbers count
//! as 0 (Intel, Architecture Instruction Set Extensions Programming Reference, TDPBF16PS).
//!
//! The instructions are written out since the compiler's own are not stable yet.

#[cfg(all(test, target_os = "linux"))]
pub mod emulator;

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

use super::microkernel::{Microkernel, PAIR_STEP, TileOperands};

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
    /// The processor has AMX, and this process may use it.
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
    /// The processor has AMX, and this process may use it.
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
