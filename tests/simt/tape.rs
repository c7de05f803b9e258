//! Launches and the buffers that they work on, as `runner.h` reads them.

use half::{bf16, f16};
use llamaprobe::arch::Dtype;

use crate::ops::operation::Role;

/// A buffer of a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer(usize);

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    Null,
    At(Buffer),
    /// At a byte of a buffer.
    Inside(Buffer, usize),
    /// Boxes of a matrix of 2-byte elements, of so many rows and columns.
    Boxes(Buffer, [usize; 2]),
    Int(usize),
    Long(usize),
    Float(f64),
    Bits(u64),
}

/// Buffers, and launches on them.
#[derive(Clone, Debug)]
pub struct Tape {
    pub dtype: Dtype,
    buffers: Vec<Vec<u8>>,
    tickets: Vec<Buffer>,
    launches: Vec<Vec<u8>>,
}

impl Tape {
    pub fn new(dtype: Dtype) -> Self {
        Self { dtype, buffers: Vec::new(), tickets: Vec::new(), launches: Vec::new() }
    }

    fn push(&mut self, bytes: Vec<u8>) -> Buffer {
        self.buffers.push(bytes);
        Buffer(self.buffers.len() - 1)
    }

    /// A buffer of the accumulation dtype.
    pub fn acc(&mut self, values: &[f64]) -> Buffer {
        self.push(values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect())
    }

    /// A buffer of the compute dtype.
    pub fn compute(&mut self, values: &[f64]) -> Buffer {
        let dtype = self.dtype;
        self.push(values.iter().flat_map(|&x| compute_bytes(dtype, x)).collect())
    }

    /// A buffer of bytes that are no numbers of the device.
    pub fn raw(&mut self, bytes: Vec<u8>) -> Buffer {
        self.push(bytes)
    }

    pub fn ints(&mut self, values: &[i32]) -> Buffer {
        self.push(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// So many tickets of blocks that meet, which every launch leaves as they were: 0.
    pub fn tickets(&mut self, count: usize) -> Buffer {
        let tickets = self.ints(&vec![0; count]);
        self.tickets.push(tickets);
        tickets
    }

    /// Whether a run left tickets that are not 0.
    pub fn leaves_tickets(&self, buffers: &[Vec<u8>]) -> bool {
        self.tickets.iter().any(|tickets| buffers[tickets.0].iter().any(|&byte| byte != 0))
    }

    pub fn longs(&mut self, values: &[u64]) -> Buffer {
        self.push(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Adds a launch; one of no blocks is none.
    pub fn launch(&mut self, name: &str, grid: [usize; 3], block: usize, shared: usize, args: &[Arg]) {
        if grid.contains(&0) {
            return;
        }
        let mut numbers = vec![name.len() as u64];
        let mut bytes: Vec<u8> = Vec::new();
        bytes.extend(numbers.drain(..).flat_map(u64::to_le_bytes));
        bytes.extend(name.bytes());
        numbers.extend(grid.map(|n| n as u64));
        numbers.extend([block as u64, 1, 1, shared as u64, args.len() as u64]);
        for arg in args {
            numbers.extend(match *arg {
                Arg::Null => [0, 0],
                Arg::At(buffer) => [1, (buffer.0 as u64) << 32],
                Arg::Inside(buffer, at) => [1, (buffer.0 as u64) << 32 | at as u64],
                Arg::Boxes(buffer, _) => [2, buffer.0 as u64],
                Arg::Int(n) => [4, n as u64],
                Arg::Float(x) => [4, u64::from((x as f32).to_bits())],
                Arg::Long(n) => [8, n as u64],
                Arg::Bits(n) => [8, n],
            });
            if let Arg::Boxes(_, [rows, columns]) = *arg {
                numbers.push((rows as u64) << 32 | columns as u64);
            }
        }
        bytes.extend(numbers.into_iter().flat_map(u64::to_le_bytes));
        self.launches.push(bytes);
    }

    /// The file that the runner reads.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = (self.buffers.len() as u64).to_le_bytes().to_vec();
        for buffer in &self.buffers {
            bytes.extend((buffer.len() as u64).to_le_bytes());
            bytes.extend(buffer);
        }
        bytes.extend((self.launches.len() as u64).to_le_bytes());
        self.launches.iter().for_each(|launch| bytes.extend(launch));
        bytes
    }

    /// A run's buffers out of the file that the runner wrote.
    pub fn split(&self, mut result: &[u8]) -> Vec<Vec<u8>> {
        let buffers = self.buffers.iter().map(|buffer| {
            let (buffer, rest) = result.split_at(buffer.len());
            result = rest;
            buffer.to_vec()
        });
        buffers.collect()
    }

    /// What a run left in a buffer.
    pub fn read(&self, buffers: &[Vec<u8>], at: Buffer, role: Role) -> Vec<f64> {
        let four = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().unwrap()));
        let two = |b: &[u8]| u16::from_le_bytes(b.try_into().unwrap());
        match (role, self.dtype) {
            (Role::Compute, Dtype::BF16) => buffers[at.0].chunks(2).map(|b| bf16::from_bits(two(b)).to_f64()).collect(),
            (Role::Compute, Dtype::F16) => buffers[at.0].chunks(2).map(|b| f16::from_bits(two(b)).to_f64()).collect(),
            _ => buffers[at.0].chunks(4).map(four).collect(),
        }
    }
}

fn compute_bytes(dtype: Dtype, x: f64) -> Vec<u8> {
    match dtype {
        Dtype::F64 => panic!("no kernel has elements of f64"),
        Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(x).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
    }
}
