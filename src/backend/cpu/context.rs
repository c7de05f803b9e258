//! What operations work with besides their arguments: the instruction set, product kernels and scratch memory.

use super::gemm::{Gemm, grow};
use super::simd::{Float, Isa};
use super::thread_pool::ThreadPool;

/// What loops run on.
pub struct Exec {
    /// The instruction set.
    pub isa: Isa,
    /// The threads.
    pub pool: ThreadPool,
}

/// The threads' memory and kernels. Scratch grows to what the largest operation needs and stays.
pub struct Context<W> {
    /// The instruction set and the threads.
    pub exec: Exec,
    /// Products shared by all threads.
    pub gemm: Gemm<W>,
    /// Scratch of the calling thread.
    pub memory: Vec<W>,
    /// Scratch for sums in `f64`.
    pub sums: Vec<f64>,
    /// What each thread has to itself.
    pub tasks: Vec<Task<W>>,
}

/// What one thread has to itself.
pub struct Task<W> {
    /// Products on this thread alone.
    pub gemm: Gemm<W>,
    /// Scratch.
    pub memory: Vec<W>,
}

impl<W: Float> Context<W> {
    /// With so many threads, the calling one included.
    pub fn new(isa: Isa, threads: usize) -> Self {
        let pool = ThreadPool::new(threads);
        let alone = || Task { gemm: Gemm::new(isa, ThreadPool::alone()), memory: Vec::new() };
        let tasks = (0..pool.threads()).map(|_| alone()).collect();
        let gemm = Gemm::new(isa, pool.clone());
        Self { exec: Exec { isa, pool }, gemm, memory: Vec::new(), sums: Vec::new(), tasks }
    }
}

/// Parts of scratch memory with the given lengths; what is in them is left over from earlier.
pub fn carve<W: Float, const N: usize>(memory: &mut Vec<W>, lens: [usize; N]) -> [&mut [W]; N] {
    let mut rest = grow(memory, lens.iter().sum());
    lens.map(|len| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
        rest = behind;
        part
    })
}
