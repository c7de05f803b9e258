//! What operations work with besides their arguments: the instruction set, product kernels and scratch memory.

use super::aligned::{AlignedVec, LINE};
use super::gemm::Gemm;
use super::gemm::kernels::Kernels;
use super::simd::{Float, Isa};
use super::thread_pool::ThreadPool;

/// What loops run on: in which instructions, on which threads.
pub struct Exec {
    /// What [`multiversion`](super::simd::multiversion) functions are told.
    pub isa: Isa,
    /// What [`parallel`](super::parallel) functions are told.
    pub pool: ThreadPool,
}

/// The threads' memory and kernels. Scratch grows to what the largest operation needs and stays.
pub struct Context<A> {
    /// The instruction set and the threads.
    pub exec: Exec,
    /// Products shared by all threads.
    pub gemm: Gemm<A>,
    /// Scratch of the calling thread.
    pub memory: AlignedVec<A>,
    /// Scratch for sums in `f64`.
    pub sums: AlignedVec<f64>,
    /// What each thread has to itself.
    pub tasks: Vec<Task<A>>,
}

/// What one thread has to itself.
pub struct Task<A> {
    /// Products on this thread alone.
    pub gemm: Gemm<A>,
    /// Scratch of the thread, to be [`carve`]d.
    pub memory: AlignedVec<A>,
}

impl<A: Kernels> Context<A> {
    /// With so many threads, the calling one included.
    pub fn new(isa: Isa, threads: usize) -> Self {
        let pool = ThreadPool::new(threads);
        let alone = || Task { gemm: Gemm::new(isa, ThreadPool::alone()), memory: AlignedVec::new() };
        let tasks = (0..pool.threads()).map(|_| alone()).collect();
        let gemm = Gemm::new(isa, pool.clone());
        Self { exec: Exec { isa, pool }, gemm, memory: AlignedVec::new(), sums: AlignedVec::new(), tasks }
    }
}

/// Parts of scratch memory with the given lengths, each from a line of the cache on; what is in them is left over from earlier.
///
/// # Panics
/// If they are longer together than memory can be.
pub fn carve<A: Float, const N: usize>(memory: &mut AlignedVec<A>, lens: [usize; N]) -> [&mut [A]; N] {
    let line = LINE / size_of::<A>();
    let all = lens.iter().try_fold(0usize, |all, len| all.checked_add(len.checked_next_multiple_of(line)?));
    let mut rest = memory.grow(all.expect("scratch: the sum of the lengths overflows"));
    lens.map(|len| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(line));
        rest = behind;
        &mut part[..len]
    })
}
