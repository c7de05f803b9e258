//! What a disassembled kernel (`cuobjdump -sass`) does on its main path, and how many of its blocks a multiprocessor holds.
//!
//! The main loop is the one with the most tensor-core products through all of which there is a way. Its main path is the shortest way, forward only, from its
//! first instruction through all products, all asynchronous copies and as many loads of vectors as lie on one way, to its
//! last: what a warp issues where no element is masked and every address is aligned. Kernels without products are taken
//! from their first instruction through their accesses of vectors to the last of those.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    address: u64,
    /// Whether a predicate stands before it.
    guarded: bool,
    /// The name with its modifiers, as `LDG.E.128.CONSTANT`.
    pub name: String,
    operands: String,
}

/// A kernel's instructions by address.
#[derive(Clone, Debug, Default)]
pub struct Listing(pub Vec<Instruction>);

/// What [`Listing::path`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Path {
    /// Instructions of one time through it, with every turn of the loops of copies inside.
    pub instructions: usize,
    /// Tensor-core products (HMMA, HGMMA).
    pub products: usize,
    /// Loads of matrices from shared memory (LDSM).
    pub matrices: usize,
    /// Asynchronous copies in the text (LDGSTS).
    pub copies: usize,
    /// Most loads in flight when the first of them is waited for.
    pub loads: usize,
    /// Times that a load is waited for which was issued after the last such wait.
    pub waits: usize,
}

/// A line of the listing, if it is one of an instruction.
pub fn instruction(line: &str) -> Option<Instruction> {
    let (address, rest) = line.trim().strip_prefix("/*")?.split_once("*/")?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let text = rest.split_once(';')?.0.trim();
    let guard = text.starts_with('@');
    let text = if guard { text.split_once(' ')?.1.trim() } else { text };
    let (name, operands) = text.split_once(' ').unwrap_or((text, ""));
    Some(Instruction { address, guarded: guard, name: name.into(), operands: operands.trim().into() })
}

impl Instruction {
    /// A tensor-core product, of a warp or of a warpgroup.
    fn is_product(&self) -> bool {
        self.is("HMMA") || self.is("HGMMA")
    }

    pub fn is(&self, name: &str) -> bool {
        self.name.split('.').next() == Some(name)
    }

    fn has(&self, modifier: &str) -> bool {
        self.name.split('.').any(|part| part == modifier)
    }

    /// Whether it loads or stores a vector in global memory.
    pub fn is_vector_access(&self) -> bool {
        (self.is("LDG") || self.is("STG")) && (self.has("64") || self.has("128"))
    }

    /// Where it may jump to, and whether it may go on.
    fn branch(&self) -> (Option<u64>, bool) {
        if self.is("BRA") {
            let target = self.operands.rsplit([' ', ',']).find_map(|word| word.strip_prefix("0x"));
            let target = target.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            // A condition may stand among the operands too.
            let alone = !self.operands.contains(',') && !self.operands.contains('P');
            return (target, self.guarded || !alone);
        }
        (None, self.guarded || !(self.is("EXIT") || self.is("RET")))
    }

    /// Registers that an operand covers, from the first on.
    fn width(&self, operand: usize) -> usize {
        match () {
            () if self.is_product() => [4, 4, 2, 4][operand.min(3)],
            () if self.has("128") || self.is("LDSM") => 4,
            () if self.has("64") || self.has("WIDE") => 2,
            () => 1,
        }
    }

    /// The registers that it writes first (where it is a load) and reads.
    fn registers(&self) -> (Vec<usize>, Vec<usize>) {
        let (mut written, mut read) = (Vec::new(), Vec::new());
        let writes = !["STG", "STS", "LDGSTS", "BRA", "RED"].iter().any(|name| self.is(name));
        for (i, operand) in self.operands.split(',').enumerate() {
            for word in operand.split(|c: char| !c.is_ascii_alphanumeric() && c != '.') {
                let (name, modifiers) = word.split_once('.').unwrap_or((word, ""));
                let Some(first) = name.strip_prefix('R').and_then(|digits| digits.parse::<usize>().ok()) else {
                    continue;
                };
                let address = operand.contains('[');
                let wide = if modifiers.contains("64") { 2 } else { 1 };
                let width = if address { wide } else { self.width(i) };
                let to = if i == 0 && writes && !address { &mut written } else { &mut read };
                to.extend(first..first + width);
            }
        }
        (written, read)
    }
}

impl Listing {
    fn index(&self, address: u64) -> Option<usize> {
        self.0.binary_search_by_key(&address, |i| i.address).ok()
    }

    pub fn count(&self, name: &str) -> usize {
        self.0.iter().filter(|i| i.is(name)).count()
    }

    /// First and last instruction of every loop.
    fn loops(&self) -> Vec<(usize, usize)> {
        let back = |(at, i): (usize, &Instruction)| {
            let target = self.index(i.branch().0?)?;
            (target < at).then_some((target, at))
        };
        self.0.iter().enumerate().filter_map(back).collect()
    }

    /// The loops with products: those with the most first, of those with as many the shortest; with products of warpgroups, whose first
    /// and last steps stand outside of the main one, the shortest of all.
    fn product_loops(&self) -> Vec<(usize, usize)> {
        let products = |&(from, to): &(usize, usize)| self.0[from..=to].iter().filter(|i| i.is_product()).count();
        let mut with: Vec<_> = self.loops().into_iter().filter(|range| products(range) > 0).collect();
        let groups = self.count("HGMMA") > 0;
        with.sort_by_key(|range| (Reverse(if groups { 0 } else { products(range) }), range.1 - range.0));
        with
    }

    /// The shortest way forward between two instructions, without the first.
    fn way(&self, from: usize, to: usize) -> Option<Vec<usize>> {
        let (mut before, mut open) = (HashMap::from([(from, from)]), VecDeque::from([from]));
        while let Some(at) = open.pop_front() {
            if at == to {
                let mut way = vec![];
                let mut step = to;
                while step != from {
                    way.push(step);
                    step = before[&step];
                }
                way.reverse();
                return Some(way);
            }
            let (target, goes_on) = self.0[at].branch();
            let next = goes_on.then_some(at + 1).into_iter().chain(target.and_then(|target| self.index(target)));
            for next in next.filter(|&next| next > at && next <= to) {
                before.entry(next).or_insert_with(|| {
                    open.push_back(next);
                    at
                });
            }
        }
        None
    }

    /// The way from `from` to `to` through what must lie on it, and through what may as far as there is one.
    fn through(&self, from: usize, to: usize, must: impl Fn(&Instruction) -> bool) -> Option<Vec<usize>> {
        let mut path = vec![from];
        let musts: Vec<usize> = (from..=to).filter(|&i| must(&self.0[i])).chain([to]).collect();
        for end in musts {
            let start = path[path.len() - 1];
            for i in start + 1..end {
                let here = path[path.len() - 1];
                if i > here && self.0[i].is_vector_access() && self.way(i, end).is_some() {
                    path.extend(self.way(here, i).unwrap_or_default());
                }
            }
            let here = path[path.len() - 1];
            if here != end {
                path.extend(self.way(here, end)?);
            }
        }
        Some(path)
    }

    /// The main path, in whose loops every copy is issued until there were `copies`.
    ///
    /// # Panics
    /// If no way leads through all products and copies of any loop with products.
    pub fn path(&self, copies: usize) -> Path {
        // What is moved behind a kernel's end, and jumps back from there, is no loop: no way leads through.
        let (loops, must) = (self.product_loops(), |i: &Instruction| i.is_product() || i.is("LDGSTS"));
        let main = loops.iter().find_map(|&(from, to)| Some(((from, to), self.through(from, to, must)?)));
        assert!(main.is_some() || loops.is_empty(), "a way through all products and copies");
        let whole = || {
            let last = self.0.iter().rposition(Instruction::is_vector_access)?;
            Some(((0, last), self.through(0, last, |_| false).expect("a way through all accesses")))
        };
        let has_products = main.is_some();
        let Some(((from, to), path)) = main.or_else(whole) else { return Path::default() };
        let of = |name: &str| path.iter().filter(|&&i| self.0[i].is(name)).count();
        let products = path.iter().filter(|&&i| self.0[i].is_product()).count();
        let (loads, waits) = self.in_flight(&path, has_products);
        let more = if has_products { self.turns(&path, (from, to), copies) } else { 0 };
        let [matrices, sites] = ["LDSM", "LDGSTS"].map(of);
        Path { instructions: path.len() + more, products, matrices, copies: sites, loads, waits }
    }

    /// Instructions of the further turns of the loops inside a path that copy.
    fn turns(&self, path: &[usize], outer: (usize, usize), copies: usize) -> usize {
        let of = |(from, to): (usize, usize)| path.iter().filter(move |&&i| (from..=to).contains(&i)).copied();
        let sites = |range| of(range).filter(|&i| self.0[i].is("LDGSTS")).count();
        let all = sites(outer);
        let inside =
            self.loops().into_iter().filter(|&(from, to)| (from, to) != outer && from > outer.0 && to < outer.1);
        let turn = |range| if sites(range) == 0 { 0 } else { of(range).count() * (copies / all).saturating_sub(1) };
        inside.map(turn).sum()
    }

    /// Most loads from global memory in flight when one is waited for, and the number of waits, on a path that is taken
    /// once, or again and again. Loads are taken to arrive in order.
    fn in_flight(&self, path: &[usize], again: bool) -> (usize, usize) {
        let mut open: VecDeque<Vec<usize>> = VecDeque::new();
        // Loads issued since the last wait: only for these is another one due.
        let mut since = 0;
        let (mut most, mut waits) = (0, 0);
        for turn in 0..if again { 2 } else { 1 } {
            waits = if turn == 1 { 0 } else { waits };
            for &i in path {
                let (written, read) = self.0[i].registers();
                let waited = open.iter().rposition(|load| load.iter().any(|r| read.contains(r)));
                if let Some(last) = waited {
                    most = most.max(open.len());
                    if last + since >= open.len() {
                        waits += 1;
                        since = 0;
                    }
                    open.drain(..=last);
                    since = since.min(open.len());
                }
                if self.0[i].is("LDG") {
                    open.push_back(written);
                    since += 1;
                }
            }
        }
        (most, waits)
    }
}

/// A multiprocessor.
#[derive(Clone, Copy, Debug)]
pub struct Multiprocessor {
    /// Shared memory, in bytes.
    shared: usize,
}

impl Multiprocessor {
    /// That of an architecture, as nvcc names it (CUDA C++ Programming Guide, "Technical specifications per compute capability").
    pub fn of(architecture: &str) -> Self {
        let kilobytes = match architecture {
            "80" => 164,
            "90a" => 228,
            _ => panic!("sm_{architecture}: its shared memory is not known here"),
        };
        Self { shared: kilobytes << 10 }
    }

    /// Blocks that it holds at a time, of `threads` threads with so many registers and so many bytes of shared memory.
    pub fn blocks(self, threads: usize, registers: usize, shared: usize) -> usize {
        // 64 warps and 32 blocks; 16384 registers in each of four parts, given out by 256; 1 KB of shared memory is the system's.
        let warps = threads.div_ceil(32);
        let of_registers = 4 * (16384 / (registers * 32).next_multiple_of(256)) / warps;
        of_registers.min(64 / warps).min(32).min(self.shared / (shared + 1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listing of the lines of a text, 16 bytes each; `%n` is the address of line n.
    fn listing(text: &str) -> Listing {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate();
        let line = |(i, line): (usize, &str)| {
            let line = match line.split_once('%') {
                Some((before, to)) => format!("{before}{:#x}", to.trim().parse::<usize>().unwrap() * 16),
                None => line.to_string(),
            };
            instruction(&format!("        /*{:04x}*/                   {line} ;   /* 0x0 */", i * 16)).unwrap()
        };
        Listing(lines.map(line).collect())
    }

    /// Two loads of vectors, then a product of each, with a slow way around each load.
    const LOOP: &str = "
        MOV R1, c[0x0][0x28]
        @P0 BRA %4
        LDG.E.64.CONSTANT R8, [R2.64]
        BRA %6
        LDG.E R8, [R2.64]
        LDG.E R9, [R2.64+0x4]
        LDG.E.128 R12, [R2.64+0x100]
        HMMA.16816.F32.BF16 R4, R16, R8, R4
        HMMA.16816.F32.BF16 R4, R16, R12, R4
        IADD3 R2, P1, R2, 0x10, RZ
        @P1 BRA %1
        EXIT";

    #[test]
    fn instructions_are_read_as_they_stand() {
        let line = "        /*0a30*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64+0x10] ;      /* 0x00 */";
        let load = instruction(line).unwrap();
        assert_eq!((load.address, load.guarded, load.name.as_str()), (0xa30, true, "LDG.E.128.CONSTANT"));
        assert_eq!(load.registers(), (vec![4, 5, 6, 7], vec![2, 3]));
        assert_eq!(instruction("                           /* 0x000fe20000000a00 */"), None);
        let branch = |text: &str| instruction(&format!("/*0000*/ {text} ;")).unwrap().branch();
        assert_eq!(branch("BRA 0x1c0"), (Some(0x1c0), false));
        assert_eq!(branch("@P0 BRA 0x1c0"), (Some(0x1c0), true));
        assert_eq!(branch("BRA.U !UP0, 0x1c0"), (Some(0x1c0), true));
        assert_eq!(branch("EXIT"), (None, false));
        assert_eq!(branch("@P0 EXIT"), (None, true));
    }

    #[test]
    fn main_path_is_that_of_whole_vectors() {
        let path = listing(LOOP).path(0);
        let expected = Path { instructions: 8, products: 2, matrices: 0, copies: 0, loads: 2, waits: 1 };
        assert_eq!(path, expected);
    }

    /// Each kind of regression changes the count that is there for it.
    #[test]
    fn regressions_are_counted() {
        let counts = |from: &str, to: &str| {
            let text = LOOP.replacen(from, to, 1);
            assert_ne!(text, LOOP);
            listing(&text).path(0)
        };
        assert_eq!(counts("IADD3", "MOV R20, R21\nIADD3").instructions, 9);
        assert_eq!(counts("IADD3 R2, P1, R2, 0x10, RZ", "LDSM.16.M88.4 R16, [R30]").matrices, 1);
        // A load that is waited for before the next is issued.
        let serial = LOOP.replace(
            "LDG.E.128 R12, [R2.64+0x100]\n        HMMA.16816.F32.BF16 R4, R16, R8, R4",
            "HMMA.16816.F32.BF16 R4, R16, R8, R4\n        LDG.E.128 R12, [R2.64+0x100]",
        );
        let serial = listing(&serial).path(0);
        assert_eq!((serial.loads, serial.waits), (1, 2));
        // A load that comes in words has no way for vectors.
        assert_eq!(counts("LDG.E.128 R12", "LDG.E R12").loads, 2);
    }

    #[test]
    fn loops_of_copies_count_with_every_turn() {
        let text = "
            MOV R1, RZ
            LDGSTS.E.BYPASS.128 [R4], [R2.64]
            IADD3 R4, R4, 0x10, RZ
            @P0 BRA %1
            HMMA.16816.F32.BF16 R4, R16, R8, R4
            @P1 BRA %0
            EXIT";
        let [once, often] = [1, 8].map(|copies| listing(text).path(copies));
        assert_eq!((once.instructions, once.copies), (6, 1));
        assert_eq!(often.instructions, 6 + 7 * 3);
    }

    #[test]
    fn blocks_are_limited_by_each_resource() {
        let [a100, h100] = ["80", "90a"].map(Multiprocessor::of);
        assert_eq!(a100.blocks(128, 178, 87_040), 1);
        assert_eq!(h100.blocks(128, 180, 87_040), 2);
        assert_eq!(a100.blocks(128, 137, 46_080), 3);
        assert_eq!(h100.blocks(256, 32, 128), 8);
        assert_eq!(h100.blocks(32, 16, 0), 32);
    }
}
