//! AMX on CPUs that have none, for tests: the CPU refuses its instructions, and the handler of that signal
//! does what they would have done, by Intel's description of them. It knows nothing of the kernels but their bytes.

use std::cell::RefCell;
use std::sync::Once;

use half::bf16;
use libc::{c_int, c_void, siginfo_t, ucontext_t};

/// Rows of a tile register, and bytes of a row.
const ROWS: usize = 16;
const BYTES: usize = 64;

/// The state of a thread.
struct Tiles {
    /// Rows and bytes of a row of each register; without a configuration there are none.
    shapes: Option<[(usize, usize); 8]>,
    data: [[[u8; BYTES]; ROWS]; 8],
}

thread_local! {
    static TILES: RefCell<Tiles> =
        const { RefCell::new(Tiles { shapes: None, data: [[[0; BYTES]; ROWS]; 8] }) };
}

/// Lets this process run the instructions of AMX.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler is a function of the kind that the flag says, and touches only the state of its thread
        // and what the refused instruction names.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = refused as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0, "emulator: no handler");
        }
    });
}

extern "C" fn refused(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the third argument of such a handler is the state of the thread where it stopped.
    let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as usize as *const u8;
    // SAFETY: the bytes of the instruction; none that is emulated is longer than 11, and the text of a program goes on.
    let bytes: [u8; 11] = unsafe { at.cast::<[u8; 11]>().read_unaligned() };
    match TILES.with_borrow_mut(|tiles| tiles.execute(&bytes, at as usize, registers)) {
        Some(length) => registers[libc::REG_RIP as usize] += length as i64,
        // Some other instruction: refused once more, now for good.
        // SAFETY: resets the handler.
        None => unsafe {
            libc::signal(libc::SIGILL, libc::SIG_DFL);
        },
    }
}

/// The general registers in the order of their numbers.
const NUMBERS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// An operand in memory: its address, the distance of its rows and the bytes that describe it, ModRM included.
struct Memory {
    address: usize,
    stride: usize,
    length: usize,
}

impl Memory {
    /// Of the instruction at `at`, whose ModRM is the fifth of `bytes`.
    fn decode(bytes: &[u8; 11], at: usize, registers: &[i64]) -> Option<Self> {
        let value = |number: u8| registers[NUMBERS[usize::from(number)] as usize] as usize;
        let (mode, low) = (bytes[4] >> 6, bytes[4] & 7);
        let (x, b) = (!bytes[1] >> 3 & 8, !bytes[1] >> 2 & 8);
        let (base, stride, mut length) = match low {
            4 => {
                let sib = bytes[5];
                let index = sib >> 3 & 7 | x;
                let stride = if index == 4 { 0 } else { value(index) << (sib >> 6) };
                let none = sib & 7 == 5 && mode == 0;
                (if none { None } else { Some(value(sib & 7 | b)) }, stride, 2)
            }
            5 if mode == 0 => (None, 0, 1),
            _ => (Some(value(low | b)), 0, 1),
        };
        let far = || i32::from_le_bytes(bytes[4 + length..8 + length].try_into().expect("four bytes")) as isize;
        let (shift, bytes_of_shift) = match mode {
            0 if base.is_none() => (far(), 4),
            0 => (0, 0),
            1 => (isize::from(bytes[4 + length] as i8), 1),
            2 => (far(), 4),
            _ => return None,
        };
        length += bytes_of_shift;
        // Without a base, and without a further byte, the address counts from the next instruction.
        let base = base.unwrap_or(if low == 5 { at + 4 + length } else { 0 });
        Some(Self { address: base.wrapping_add_signed(shift), stride, length })
    }
}

impl Tiles {
    /// Executes an instruction of AMX; its length, or nothing if it is another one or is used wrongly.
    fn execute(&mut self, bytes: &[u8; 11], at: usize, registers: &[i64]) -> Option<usize> {
        // A prefix of three bytes, the map of opcodes 0F38, no wide operands, vectors of 128 bits.
        if bytes[0] != 0xc4 || bytes[1] & 0x1f != 2 || bytes[2] & 0x84 != 0 {
            return None;
        }
        let (prefix, opcode, modrm) = (bytes[2] & 3, bytes[3], bytes[4]);
        let (middle, register_form) = (usize::from(modrm >> 3 & 7), modrm >> 6 == 3);
        match (opcode, prefix, register_form) {
            (0x49, 0, false) => {
                let memory = Memory::decode(bytes, at, registers)?;
                // SAFETY: LDTILECFG reads 64 bytes there.
                let config = unsafe { (memory.address as *const [u8; 64]).read_unaligned() };
                let row_bytes = |i: usize| usize::from(u16::from_le_bytes([config[16 + 2 * i], config[17 + 2 * i]]));
                let shapes = std::array::from_fn(|i| (usize::from(config[48 + i]), row_bytes(i)));
                let valid = shapes.iter().all(|&(rows, bytes)| rows <= ROWS && bytes <= BYTES && bytes % 4 == 0);
                if config[0] != 1 || config[1] != 0 || config[2..16].iter().any(|&x| x != 0) || !valid {
                    return None;
                }
                *self = Self { shapes: Some(shapes), data: [[[0; BYTES]; ROWS]; 8] };
                Some(4 + memory.length)
            }
            (0x49, 0, true) if modrm == 0xc0 => {
                *self = Self { shapes: None, data: [[[0; BYTES]; ROWS]; 8] };
                Some(5)
            }
            (0x49, 3, true) if modrm & 7 == 0 => {
                self.shapes?;
                self.data[middle] = [[0; BYTES]; ROWS];
                Some(5)
            }
            (0x4b, 2 | 3, false) if modrm & 7 == 4 => {
                let memory = Memory::decode(bytes, at, registers)?;
                let (rows, width) = self.shapes?[middle];
                if prefix == 3 {
                    self.data[middle] = [[0; BYTES]; ROWS];
                }
                for (i, row) in self.data[middle].iter_mut().enumerate().take(rows) {
                    let there = memory.address.wrapping_add(i.wrapping_mul(memory.stride)) as *mut u8;
                    // SAFETY: TILELOADD (prefix F2) reads the row there, TILESTORED (F3) writes it.
                    unsafe {
                        match prefix {
                            3 => std::ptr::copy_nonoverlapping(there, row.as_mut_ptr(), width),
                            _ => std::ptr::copy_nonoverlapping(row.as_ptr(), there, width),
                        }
                    }
                }
                Some(4 + memory.length)
            }
            (0x5c, 2, true) => {
                let third = usize::from(!bytes[2] >> 3 & 15);
                self.multiply(middle, usize::from(modrm & 7), third)?;
                Some(5)
            }
            _ => None,
        }
    }

    /// TDPBF16PS.
    fn multiply(&mut self, to: usize, a: usize, b: usize) -> Option<()> {
        let shapes = self.shapes?;
        let [(rows, width), (a_rows, a_width), (b_rows, b_width)] =
            [to, a, b].map(|i| *shapes.get(i).unwrap_or(&(0, 0)));
        if rows != a_rows || a_width != 4 * b_rows || width != b_width || to == a || a == b || to == b {
            return None;
        }
        for m in 0..rows {
            for n in 0..width / 4 {
                let mut sums = [0.0f32; 2];
                for k in 0..a_width / 4 {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let at = |row: &[u8; BYTES], pair: usize| {
                            flush(bf16::from_le_bytes([row[4 * pair + 2 * i], row[4 * pair + 2 * i + 1]]).to_f32())
                        };
                        *sum = flush(at(&self.data[a][m], k).mul_add(at(&self.data[b][k], n), *sum));
                    }
                }
                let place = &mut self.data[to][m][4 * n..4 * n + 4];
                let old = flush(f32::from_le_bytes(place.try_into().expect("four bytes")));
                place.copy_from_slice(&flush(old + flush(sums[0] + sums[1])).to_le_bytes());
            }
        }
        Some(())
    }
}

/// Subnormal numbers are 0.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}
