//! By which of cuBLASLt's algorithms a product is computed: the one that was the quickest when all were timed on this device, once.
//!
//! Algorithms add up in different orders, so the choice decides bits, and must not depend on how a timing falls out today:
//!
//! - A choice is made before the product is first computed, and written to a file of the cache (device, versions of driver and
//!   cuBLASLt, dtype and shape are its name). What stands there is taken and never timed again, unless that is asked for. Of several
//!   processes that time, or replace the same file, at the same time the first to write decides, and the others take its choice.
//! - Nothing is timed where the choice cannot be kept: then, as for products that take about as long as their launch, it is the first
//!   that the heuristic offers, which it is for the same version always.
//! - Where the driver has no memory to time, or a device has been timed for long enough ([`MOST_MILLIS`]), what stands there stays,
//!   and where nothing does, the heuristic's first is written. Else a later run with more room or time would compute other bits: only
//!   one that is asked to time again does. Memory kept for reuse is not given back for it ([`Passing::filled`]).
//! - Passes have any number of rows. A choice is for the rows rounded up to one of eight sizes from a power of two to the next
//!   ([`rounded`]), and a product of fewer is computed by it if cuBLASLt says that it can be.
//!
//! The operands are timed in memory of their own, which is the driver's again afterwards: no result is touched.

use std::collections::HashMap;
use std::path::PathBuf;

use cudarc::driver::{CudaEvent, sys};

use super::cublaslt::{Algorithm, CublasLt, Descriptors, described};
use super::driver::error;
use super::gemm::{GemmShape, Operands};
use super::memory::Passing;
use super::sealed::{Magic, seal, unseal};
use super::settings::{GemmAlgorithms, Settings};
use crate::Result;
use crate::backend::profile::Recorder;
use crate::backend::scratch::ALIGN;
use crate::formats::atomic;
use crate::hash::{digest, hex};

/// Algorithms that are timed for a shape, at most.
const MOST: usize = 8;
/// How often each is timed, in turn, of which the quickest counts.
const ROUNDS: usize = 5;
/// Bytes of operands and result below which nothing is timed: they pass in a microsecond or two.
const LEAST_BYTES: usize = 4 << 20;
/// Milliseconds of timed products after which a device, from when it is opened, times no other shape: enough for some hundred of a model
/// of 7 billion parameters, which take 1 to 6 each. Memory, its filling and first calls are not counted.
const MOST_MILLIS: f32 = 2000.0;
/// Each byte of the operands: 1.06 in f16, 0.0115 in the other dtypes.
const FILLING: u8 = 0x3c;
/// First bytes of the file of a choice.
const MAGIC: Magic = *b"LPGEMM01";

/// The choices of one device and compute dtype.
pub struct Algorithms {
    retime: bool,
    /// Where they are kept; none where nothing is timed.
    dir: Option<PathBuf>,
    /// What else than the shape they depend on.
    environment: String,
    on_warning: fn(&str),
    recorder: Option<Recorder>,
    /// By shapes with rounded rows.
    chosen: HashMap<GemmShape, Choice>,
    /// Milliseconds of timed products so far.
    spent: f32,
    /// Whether it has been said that there is no memory to time.
    said: bool,
}

/// Bytes of an algorithm.
const BYTES: usize = size_of::<Algorithm>();

#[derive(Clone)]
struct Choice {
    algorithm: Algorithm,
    why: String,
}

/// A file of the cache, as it was read.
struct Standing {
    file: atomic::Old,
    /// None where it is of no use.
    algorithm: Option<Algorithm>,
}

impl Algorithms {
    /// No choices yet.
    ///
    /// # Errors
    /// Of the driver.
    pub fn new(lt: &CublasLt, settings: &Settings) -> Result<Self> {
        let (device, mut driver) = (&lt.device, 0);
        // SAFETY: the address is that of an integer.
        let version = unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result();
        device.check("start", version)?;
        let name = device.check("start", device.context().name())?;
        let ((major, minor), count, blas) = (device.arch(), device.multiprocessors(), lt.version());
        let real = lt.dtype.kernel_type();
        let environment =
            format!("{name} {major}.{minor}, {count} multiprocessors, driver {driver}, cuBLASLt {blas}, {real}");
        let dir = settings.cache_dir.clone().filter(|_| settings.gemm != GemmAlgorithms::First);
        Ok(Self {
            retime: settings.gemm == GemmAlgorithms::Retimed,
            dir,
            environment,
            on_warning: settings.on_warning,
            recorder: None,
            chosen: HashMap::new(),
            spent: 0.0,
            said: false,
        })
    }

    /// Tells a recorder from now on what is taken, and why.
    pub fn record(&mut self, recorder: &Recorder) {
        self.recorder = Some(recorder.clone());
    }

    /// The algorithm for products of a shape.
    ///
    /// # Errors
    /// If there is none, or the device fails.
    pub fn of(&mut self, lt: &CublasLt, op: &'static str, shape: &GemmShape, of: &Descriptors) -> Result<Algorithm> {
        let chosen = self.choice(lt, op, shape)?.filter(|choice| lt.takes(of, &choice.algorithm));
        let choice = match chosen {
            Some(choice) => choice,
            None => Choice { algorithm: lt.offers(op, shape, of, 1)?[0], why: "the heuristic's first".to_owned() },
        };
        if let Some(recorder) = &self.recorder {
            let algorithm = format!("{}: {}", described(&choice.algorithm), choice.why);
            recorder.set_algorithm(named(op, shape), algorithm);
        }
        Ok(choice.algorithm)
    }

    /// What has been, or now is, chosen for a shape; none where the heuristic's first is taken.
    fn choice(&mut self, lt: &CublasLt, op: &'static str, shape: &GemmShape) -> Result<Option<Choice>> {
        let shape = &rounded(shape);
        if bytes(shape, lt.dtype.size()).iter().sum::<usize>() < LEAST_BYTES {
            return Ok(None);
        }
        if let Some(choice) = self.chosen.get(shape) {
            return Ok(Some(choice.clone()));
        }
        let Some(dir) = &self.dir else { return Ok(None) };
        // The shape comes last, and there are no line breaks in either: no two products have the same key.
        let key = format!("{}\n{shape:?}", self.environment);
        let name = hex(&digest([key.as_bytes()])[..16]);
        let path = dir.join(format!("gemm-{}-{name}.algorithm", lt.dtype.kernel_type()));
        let of = lt.descriptors(op, shape)?;
        let offers = lt.offers(op, shape, &of, MOST)?;
        if offers.len() == 1 {
            return Ok(None);
        }
        let file = ChoiceFile { path, key, on_warning: self.on_warning };
        let accepts = |algorithm: &Algorithm| lt.takes(&of, algorithm);
        let choice = match file.read(accepts) {
            Ok(Some(Standing { algorithm: Some(algorithm), .. })) if !self.retime => {
                Ok(Choice { algorithm, why: "chosen by an earlier run".to_owned() })
            }
            Ok(standing) => {
                let earlier = standing.as_ref().and_then(|standing| standing.algorithm);
                let first = |why| Choice { algorithm: offers[0], why: format!("the heuristic's first: {why}") };
                match (self.quickest(lt, op, shape, &of, &offers)?, earlier) {
                    (Err(why), Some(algorithm)) => {
                        Ok(Choice { algorithm, why: format!("chosen by an earlier run: {why}") })
                    }
                    (timed, _) => file.keep(timed.unwrap_or_else(first), standing, accepts),
                }
            }
            Err(why) => Err(why),
        };
        let choice = match choice {
            Ok(choice) => choice,
            Err(why) => {
                self.dir = None;
                let instead = "the algorithms that cuBLASLt offers first are taken";
                (self.on_warning)(&format!("algorithm cache: {why}; {instead}"));
                return Ok(None);
            }
        };
        self.chosen.insert(*shape, choice.clone());
        Ok(Some(choice))
    }

    /// The quickest of the algorithms offered, or why they were not timed.
    fn quickest(
        &mut self,
        lt: &CublasLt,
        op: &'static str,
        shape: &GemmShape,
        of: &Descriptors,
        offers: &[Algorithm],
    ) -> Result<std::result::Result<Choice, &'static str>> {
        if self.spent >= MOST_MILLIS {
            return Ok(Err("enough time was spent on others"));
        }
        let device = &lt.device;
        let [of_a, of_b, of_d] = bytes(shape, lt.dtype.size()).map(|bytes| bytes.next_multiple_of(ALIGN));
        let total = of_a + of_b + of_d + shape.m * size_of::<f32>();
        let Some(scratch) = device.check(op, Passing::filled(device, total, FILLING))? else {
            if !std::mem::replace(&mut self.said, true) {
                let needs =
                    format!("{total} bytes wanted to time algorithms of products, which the driver does not have");
                let instead = "what cuBLASLt offers first is the choice where none was made yet";
                (self.on_warning)(&format!(
                    "{}: {needs}: {instead}, until LLAMAPROBE_GEMM=retime finds room",
                    device.name()
                ));
            }
            return Ok(Err("no memory to time it"));
        };
        let at = |offset| scratch.ptr().add(offset);
        let bias = shape.bias.then(|| at(of_a + of_b + of_d));
        let operands = Operands { a: at(0), b: at(of_a), d: at(of_a + of_b), bias };
        let run = |algorithm: &Algorithm| lt.run(of, algorithm, shape.accumulate, &operands);
        let event = || -> Result<CudaEvent> {
            let event = device.check(op, device.new_timed_event())?;
            device.check(op, event.record(device.stream()))?;
            Ok(event)
        };
        // The first call of each loads it; what cannot be launched is out.
        let usable: Vec<usize> = (0..offers.len()).filter(|&i| run(&offers[i]).is_ok()).collect();
        let mut runs = Vec::new();
        for _ in 0..ROUNDS {
            for &i in &usable {
                let start = event()?;
                run(&offers[i]).map_err(|e| error(device.name(), op, &e))?;
                runs.push((i, start, event()?));
            }
        }
        let mut millis = [f32::INFINITY; MOST];
        for (i, start, end) in &runs {
            millis[*i] = millis[*i].min(device.check(op, start.elapsed_ms(end))?);
        }
        if let (Some((_, start, _)), Some((.., end))) = (runs.first(), runs.last()) {
            self.spent += device.check(op, start.elapsed_ms(end))?;
        }
        let Some(quickest) = usable.into_iter().min_by(|&i, &j| millis[i].total_cmp(&millis[j])) else {
            return Ok(Err("none could be launched to time it"));
        };
        let [took, before] = [millis[quickest], millis[0]].map(|millis| 1e3 * millis);
        let why =
            format!("the quickest of {}, {took:.1} us, where the heuristic's first takes {before:.1}", offers.len());
        Ok(Ok(Choice { algorithm: offers[quickest], why }))
    }
}

/// The file of one choice.
struct ChoiceFile {
    path: PathBuf,
    key: String,
    on_warning: fn(&str),
}

impl ChoiceFile {
    /// What stands there, if anything. The error says why it cannot be read.
    fn read(&self, accepts: impl Fn(&Algorithm) -> bool) -> std::result::Result<Option<Standing>, String> {
        let standing = atomic::open_if_there(&self.path).map_err(|e| e.to_string())?;
        Ok(standing.map(|(file, bytes)| {
            let algorithm = self.algorithm(&bytes, accepts).map_err(|why| {
                (self.on_warning)(&format!("algorithm cache: {}: {why}, chosen again", self.path.display()));
            });
            Standing { file, algorithm: algorithm.ok() }
        }))
    }

    /// The algorithm of a file that is whole, of this key, and accepted; the error says what is wrong.
    fn algorithm(
        &self,
        file: &[u8],
        accepts: impl Fn(&Algorithm) -> bool,
    ) -> std::result::Result<Algorithm, &'static str> {
        let content = unseal(&MAGIC, file).and_then(|content| content.split_at_checked(BYTES));
        let (bytes, key) = content.ok_or("damaged")?;
        if key != self.key.as_bytes() {
            return Err("of another product or device");
        }
        let mut algorithm = Algorithm { data: [0; 8] };
        for (word, bytes) in algorithm.data.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        if accepts(&algorithm) { Ok(algorithm) } else { Err("no algorithm that cuBLASLt takes for it") }
    }

    /// Writes a choice, in the place of what was read. Returns it, or that of another process that has written since then.
    fn keep(
        &self,
        choice: Choice,
        replaces: Option<Standing>,
        accepts: impl Fn(&Algorithm) -> bool,
    ) -> std::result::Result<Choice, String> {
        let bytes = choice.algorithm.data.map(u64::to_le_bytes);
        let file = seal(&MAGIC, &[bytes.as_flattened(), self.key.as_bytes()].concat());
        let written = match replaces {
            Some(Standing { file: old, .. }) => atomic::replace(&self.path, &old, &file),
            None => atomic::write_new(&self.path, &file),
        };
        match written {
            Ok(true) => Ok(choice),
            Ok(false) => match self.read(accepts)?.and_then(|standing| standing.algorithm) {
                Some(algorithm) => Ok(Choice { algorithm, why: "chosen by another process".to_owned() }),
                None => Err(format!("{}: what another process has written is of no use", self.path.display())),
            },
            Err(e) => Err(e.to_string()),
        }
    }
}

/// A product in words, every shape in others.
fn named(op: &str, shape: &GemmShape) -> String {
    let GemmShape { m, n, k, transpose_a, transpose_b, acc_out, bias, accumulate, count, strides, alignment } = shape;
    let mut name = format!("{op} [{n}, {m}], depth {k}");
    let mut say = |yes: bool, what: &str| name.push_str(if yes { what } else { "" });
    say(*count > 1, &format!(", {count} in one, {strides:?} elements apart"));
    say(*transpose_a, ", first operand transposed");
    say(*transpose_b, ", second operand transposed");
    say(*bias, ", with a bias");
    say(true, if *acc_out { ", result in f32" } else { ", result in the compute dtype" });
    say(*accumulate, ", added to what was there");
    say(true, &format!(", addresses are multiples of {alignment} bytes"));
    name
}

/// A shape with the rows of the pass rounded up to a multiple of an eighth of the power of two below, so that there are few, and
/// products that are one lying side by side.
fn rounded(shape: &GemmShape) -> GemmShape {
    let up = |rows: usize| rows.next_multiple_of((rows.next_power_of_two() / 16).max(1));
    // In the gradient of a weight, the rows are what is summed over.
    let (n, k) = if shape.transpose_b { (shape.n, up(shape.k)) } else { (up(shape.n), shape.k) };
    let apart = [shape.m * k, n * k, shape.m * n].map(|elements| elements.next_multiple_of(ALIGN));
    let strides = std::array::from_fn(|i| if shape.strides[i] == 0 { 0 } else { apart[i] });
    GemmShape { n, k, strides, ..*shape }
}

/// Bytes that the operands and the result of a shape span, where an element of the compute dtype has `size`.
fn bytes(shape: &GemmShape, size: usize) -> [usize; 3] {
    let GemmShape { m, n, k, count, strides, .. } = *shape;
    let sizes = [size, size, if shape.acc_out { size_of::<f32>() } else { size }];
    let one = [m * k, n * k, m * n];
    std::array::from_fn(|i| (strides[i] * (count - 1) + one[i]) * sizes[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: GemmShape = GemmShape {
        m: 100,
        n: 520,
        k: 7,
        transpose_a: true,
        transpose_b: false,
        acc_out: true,
        bias: false,
        accumulate: false,
        count: 3,
        strides: [900, 0, 60000],
        alignment: 16,
    };

    #[test]
    fn shapes_are_rounded_in_their_rows_alone() {
        let found = rounded(&SHAPE);
        assert_eq!(found, GemmShape { n: 576, strides: [768, 0, 57600], ..SHAPE });
        let of_weight = rounded(&GemmShape { transpose_b: true, k: 1100, count: 1, strides: [0; 3], ..SHAPE });
        assert_eq!((of_weight.n, of_weight.k, of_weight.strides), (520, 1152, [0; 3]));
        let sizes: std::collections::BTreeSet<usize> =
            (1..=2048).map(|n| rounded(&GemmShape { n, ..SHAPE }).n).collect();
        assert_eq!(sizes.len(), 16 + 7 * 8);
        // Passes that are filled up (`train/fill.rs`) have sizes of their own.
        assert!([1, 16, 48, 64, 192, 704, 1152, 1920].iter().all(|n| sizes.contains(n)));
    }

    #[test]
    fn shapes_have_names_of_their_own() {
        let GemmShape { m, n, k, transpose_a, transpose_b, acc_out, bias, accumulate, count, .. } = SHAPE;
        let others = [
            GemmShape { m: m + 1, ..SHAPE },
            GemmShape { n: n + 1, ..SHAPE },
            GemmShape { k: k + 1, ..SHAPE },
            GemmShape { transpose_a: !transpose_a, ..SHAPE },
            GemmShape { transpose_b: !transpose_b, ..SHAPE },
            GemmShape { acc_out: !acc_out, ..SHAPE },
            GemmShape { bias: !bias, ..SHAPE },
            GemmShape { accumulate: !accumulate, ..SHAPE },
            GemmShape { count: count + 1, ..SHAPE },
            GemmShape { strides: [900, 0, 60001], ..SHAPE },
            GemmShape { alignment: 32, ..SHAPE },
        ];
        let names: std::collections::BTreeSet<String> =
            others.iter().chain([&SHAPE]).map(|shape| named("linear_fwd", shape)).collect();
        assert_eq!(names.len(), others.len() + 1, "{names:?}");
    }

    #[test]
    fn of_those_that_replace_a_file_at_once_the_first_decides() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("one.algorithm");
        let file = ChoiceFile { path: path.clone(), key: "key".to_owned(), on_warning: |_| () };
        let algorithm = |word| Algorithm { data: [word; 8] };
        let choice = |word| Choice { algorithm: algorithm(word), why: "timed".to_owned() };
        let read = || file.read(|_| true).expect("it can be read");
        let keep = |word, replaces| file.keep(choice(word), replaces, |_| true).expect("it can be kept").algorithm;
        // What is of no use, what is timed again, and that again with the same outcome; what is gone meanwhile.
        std::fs::write(&path, "damaged").expect("a file");
        for (first, then) in [(1, 2), (3, 4), (3, 5)] {
            let (one, other) = (read(), read());
            assert_eq!(keep(first, one), algorithm(first));
            assert_eq!(keep(then, other), algorithm(first), "another choice although {first} was written");
            assert_eq!(read().and_then(|standing| standing.algorithm), Some(algorithm(first)));
        }
        let gone = read();
        std::fs::remove_file(&path).expect("a file");
        assert_eq!(keep(6, gone), algorithm(6));
    }

    #[test]
    fn operands_span_all_products() {
        assert_eq!(bytes(&SHAPE, 2), [2 * (2 * 900 + 700), 2 * 520 * 7, 4 * (2 * 60000 + 52000)]);
    }
}
