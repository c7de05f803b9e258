//! The emulator's copies of boxes of a matrix (`tests/simt/tensor_copy.h`): what they bring, and that it finds what must not go wrong
//! with them, each mistake planted in a small kernel. What is planted in attention's own kernel is in `simt.rs`.

use llamaprobe::arch::Dtype;
use rayon::prelude::*;

use crate::ops::operation::Role;
use crate::ops::simt::machine::{self, Build, Machine, Mode, SCHEDULES};
use crate::ops::simt::tape::{Arg, Tape};

/// Two warps that each hand on a box of up to 64 rows and 64 columns that one thread has asked for, as it lies in shared memory; what
/// goes wrong with it is `fault`.
const KERNEL: &str = "
enum { NO_BARRIER_FENCE = 1, NO_WAIT, PHASE, FEW_BYTES, MANY_BYTES, PLACE, BEYOND, NO_FENCE, TWICE, NO_MAP };

extern \"C\" __global__ void __launch_bounds__(64)
    box(real* __restrict__ out, const __grid_constant__ Boxes x, const real* __restrict__ values, int height, int column, int row,
        int fault) {
    begin_kernel();
    DYNAMIC_SHARED(memory);
    real* tile = reinterpret_cast<real*>(memory);
    u64* barrier = reinterpret_cast<u64*>(tile + TILE * STRETCH);
    int bytes = height * STRETCH * (int)sizeof(real);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        if (fault != NO_BARRIER_FENCE) fence_proxy_async();
    }
    __syncthreads();
    if (threadIdx.x == 40) {
        copy_async(tile, values, false);
        copy_commit();
        copy_wait<0>();
        if (fault != NO_FENCE && fault != NO_BARRIER_FENCE) fence_proxy_async();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const TensorMap& map = height == 64 ? x.of_64 : height == 8 ? x.of_8 : x.of_1;
        TensorMap none = {};
        mbarrier_arrive_expecting(barrier, fault == FEW_BYTES ? bytes / 2 : fault == MANY_BYTES ? 2 * bytes : bytes);
        if (fault == TWICE) mbarrier_arrive(barrier);
        copy_box(fault == PLACE ? tile + 8 : fault == BEYOND ? tile + 2 * TILE * STRETCH : tile, fault == NO_MAP ? none : map, column,
                 row, barrier);
    }
    if (fault != NO_WAIT) mbarrier_wait(barrier, fault == PHASE);
    for (int i = threadIdx.x; i < height * STRETCH; i += 64) out[i] = tile[i];
}

// A product of a warpgroup with a tile that its threads have copied.
extern \"C\" __global__ void __launch_bounds__(128)
    product(float* __restrict__ out, const real* __restrict__ values, int fault) {
    begin_kernel();
    DYNAMIC_SHARED(memory);
    real* tile = reinterpret_cast<real*>(memory);
    for (int i = threadIdx.x * 8; i < TILE * STRETCH; i += 128 * 8) copy_async(tile + i, values + i, false);
    copy_commit();
    copy_wait<0>();
    if (fault != NO_FENCE) fence_proxy_async();
    __syncthreads();
    FragmentA<real> a[HEAD_DIM / 16] = {};
    float sums[1][TILE / 8][4];
    wgmma_fence();
    multiply_transposed(sums, a, tile);
    wgmma_commit();
    wgmma_wait<0>();
    for (int n = 0; n < TILE / 8; n++)
        for (int e = 0; e < 4; e++) out[threadIdx.x * TILE / 2 + n * 4 + e] = sums[0][n][e];
}
";
const FAULTS: [&str; 10] = [
    "initialised without fence.proxy.async",
    "late",
    "late",
    "deadlock",
    "deadlock",
    "not aligned to 128 bytes",
    "beyond shared memory",
    "over what a copy wrote without fence.proxy.async",
    "more arrivals",
    "no tensor map",
];

const NO_FENCE: usize = 8;

const SHAPE: [usize; 2] = [70, 72];

struct Copies {
    machine: Machine,
    matrix: Vec<f64>,
}

impl Copies {
    fn new() -> Self {
        let build = Build::new(Dtype::F16, 64).hopper();
        let text = machine::text(&["attention_hopper"]) + KERNEL;
        let machine = Machine::of_text(&text, Dtype::F16, Mode::Plain, &build.macros());
        // Numbers that a half holds.
        let matrix = (0..SHAPE[0] * SHAPE[1]).map(|i| (i % 2000) as f64 - 900.0).collect();
        Self { machine, matrix }
    }

    /// What a copy of so many rows from (row, column) on brings, or what the emulator says.
    fn run(
        &self,
        height: usize,
        [row, column]: [i32; 2],
        fault: usize,
        shape: [usize; 2],
        schedule: (&str, &str),
    ) -> Result<Vec<f64>, String> {
        let mut tape = Tape::new(Dtype::F16);
        let x = tape.compute(&self.matrix);
        let out = tape.compute(&vec![0.5; height * 64]);
        let int = |x: i32| Arg::Int(x as u32 as usize);
        let args =
            [Arg::At(out), Arg::Boxes(x, shape), Arg::At(x), Arg::Int(height), int(column), int(row), Arg::Int(fault)];
        tape.launch("box", [1, 1, 1], 64, 64 * 64 * 2 + 8, &args);
        self.machine.run(&tape, schedule).map(|buffers| tape.read(&buffers, out, Role::Compute))
    }

    /// What the emulator says of a product with what threads have copied.
    fn product(&self, fault: usize, schedule: (&str, &str)) -> Result<Vec<f64>, String> {
        let mut tape = Tape::new(Dtype::F16);
        let (x, out) = (tape.compute(&self.matrix), tape.acc(&vec![f64::NAN; 64 * 64]));
        tape.launch("product", [1, 1, 1], 128, 64 * 64 * 2, &[Arg::At(out), Arg::At(x), Arg::Int(fault)]);
        self.machine.run(&tape, schedule).map(|buffers| tape.read(&buffers, out, Role::Acc))
    }

    /// What [`Copies::run`] should bring: rows of eight parts of 16 bytes, of which part p of row r stands at p ^ r % 8.
    fn expected(&self, height: usize, [row, column]: [i32; 2]) -> Vec<f64> {
        let mut expected = vec![0.0; height * 64];
        for (r, out) in expected.chunks_mut(64).enumerate() {
            for c in 0..64 {
                let (from, at) = ([row + r as i32, column + c as i32], ((c / 8) ^ (r % 8)) * 8 + c % 8);
                let inside = (0..SHAPE[0] as i32).contains(&from[0]) && (0..SHAPE[1] as i32).contains(&from[1]);
                out[at] = if inside { self.matrix[from[0] as usize * SHAPE[1] + from[1] as usize] } else { 0.0 };
            }
        }
        expected
    }
}

#[test]
fn tensor_copies_bring_boxes_swizzled_with_zeros_from_outside() {
    if !machine::compiler() {
        return;
    }
    let copies = Copies::new();
    let boxes = [
        (64, [3, 8]),
        (64, [-5, 0]),
        (64, [20, 16]),
        (8, [66, -8]),
        (8, [-8, 0]),
        (8, [70, 0]),
        (1, [69, 0]),
        (1, [-8, 0]),
    ];
    boxes.into_par_iter().for_each(|(height, at)| {
        for schedule in SCHEDULES {
            let found = copies.run(height, at, 0, SHAPE, schedule).unwrap_or_else(|said| panic!("{at:?}: {said}"));
            assert_eq!(found, copies.expected(height, at), "{height} rows from {at:?}, {schedule:?}");
        }
    });
}

#[test]
fn planted_bugs_of_tensor_copies_are_found() {
    if !machine::compiler() {
        return;
    }
    let (copies, at) = (Copies::new(), [3, 8]);
    let expected = copies.expected(64, at);
    FAULTS.into_par_iter().enumerate().for_each(|(i, what)| {
        for schedule in SCHEDULES {
            match copies.run(64, at, i + 1, SHAPE, schedule) {
                Err(said) => assert!(said.contains(what) || what == "late", "fault {}, {schedule:?}: {said}", i + 1),
                // What is not waited for is there all the same where copies land at once.
                Ok(found) => {
                    let unseen = what == "late" && schedule.1 == "early";
                    assert!(found != expected || unseen, "fault {}, {schedule:?}: unseen", i + 1);
                }
            }
        }
    });
    // A product reads what threads have copied and not made visible to it.
    for schedule in SCHEDULES {
        assert_eq!(copies.product(0, schedule), Ok(vec![0.0; 64 * 64]), "{schedule:?}");
        let said = copies.product(NO_FENCE, schedule).expect_err("no fence");
        assert!(said.contains("reads what a copy wrote without fence.proxy.async"), "{schedule:?}: {said}");
    }
    // What the driver refuses to encode.
    for (shape, what) in [([70, 68], "a stride"), ([0, 72], "a tensor of no")] {
        let said = copies.run(8, at, 0, shape, SCHEDULES[0]).expect_err("a map");
        assert!(said.contains(what), "{shape:?}: {said}");
    }
}
