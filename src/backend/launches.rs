//! What a GPU is given for some operations: launches in order, as the CUDA backend makes them.
//!
//! An operation says how it is launched ([`Op::launches`](super::ops::Op::launches)); here stands which neighbours share a
//! launch. [`Trace`](super::trace::Trace) collects them, so that the launches of a whole step of training are known without a GPU,
//! and `tests/cuda_fake.rs` counts the same at the driver. Captures are not among them, nor tables that a device keeps.

use super::op::{Launch, LaunchKind, Projected, ProjectedLora, Work};
use super::scratch::{RANKS, TOGETHER, made_in_parts};

/// A launch, and the operation that it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The operation; of a launch for two of them the one that has most of the work.
    pub op: &'static str,
    /// What is launched.
    pub launch: Launch,
    /// Whether it is for two operations.
    joint: bool,
}

/// Launches in order.
#[derive(Clone, Debug, Default)]
pub struct Launches {
    issued: Vec<Issued>,
    /// What waits for other projections of the same input.
    waiting: Vec<Waiting>,
    /// The launch before that, if it may make what the first launch of the waiting LoRAs would make.
    maker: Option<Maker>,
}

impl Launches {
    /// Adds those of an operation.
    pub(super) fn add(&mut self, op: &'static str, projected: Option<Projected>, launches: Vec<Launch>) {
        if launches.is_empty() {
            return;
        }
        if let Some(passed_on) = projected.and_then(|part| passed_on(&self.waiting, part)) {
            let maker = Maker::new(&self.waiting, projected);
            let mut all = self.take_waiting(true);
            let (_, last) = all.last_mut().expect("something waits");
            last.work = last.work.and(launches[0].work).without(passed_on);
            all.extend(launches[1..].iter().map(|launch| (op, *launch)));
            all.into_iter().for_each(|(op, launch)| self.issue(op, launch));
            self.maker = maker;
            return;
        }
        if let Some(Projected::NormGradient { len }) = projected.filter(|part| rounded(&self.waiting, *part)) {
            let mut all = self.take_waiting(true);
            all.push((op, launches[0]));
            // Written and read.
            for (_, launch) in all.iter_mut().rev().take(2) {
                launch.work = launch.work.without(Work::moved(len, 0, 0)).and(Work::moved(0, len, 0));
            }
            return all.into_iter().for_each(|(op, launch)| self.issue(op, launch));
        }
        if let (Some(Projected::RotatedGradient), Some(made)) = (projected, self.attention_gradient()) {
            // Angles are read; what is rotated is in registers.
            made.launch.work = made.launch.work.and(Work { compute: 0, ..launches[0].work });
            made.joint = true;
            self.maker = None;
            return;
        }
        let waits = projected.filter(|part| match part {
            Projected::Gated { .. } | Projected::GatedGradient { .. } => false,
            Projected::NormGradient { .. } | Projected::HeadGradient { .. } | Projected::RotatedGradient => false,
            Projected::Rotated { len } => rotates(&self.waiting, *len),
            _ => true,
        });
        if !waits.is_some_and(|part| self.waiting.iter().all(|before| joins(before.part, part))) {
            self.flush();
        }
        match waits {
            Some(part) => self.waiting.push(Waiting { op, part, launches }),
            None => launches.into_iter().for_each(|launch| self.issue(op, launch)),
        }
    }

    fn issue(&mut self, op: &'static str, launch: Launch) {
        let next = Issued { op, launch, joint: false };
        match self.issued.last().copied().and_then(|last| joined(last, next)) {
            Some(both) => *self.issued.last_mut().expect("joined with it") = both,
            None => self.issued.push(next),
        }
    }

    /// The launch for queries, then that for keys, of the attention's backward that comes last, where nothing is rotated there yet.
    fn attention_gradient(&mut self) -> Option<&mut Issued> {
        let last = self.issued.last_chunk_mut::<2>().filter(|_| self.waiting.is_empty())?;
        last.iter_mut().find(|issued| issued.op == "attention_bwd" && !issued.joint)
    }

    fn flush(&mut self) {
        self.take_waiting(false).into_iter().for_each(|(op, launch)| self.issue(op, launch));
    }

    /// The launches of what waits, but for what the launch before makes, of which the last may pass its sum on.
    fn take_waiting(&mut self, passes_on: bool) -> Vec<(&'static str, Launch)> {
        let waiting = std::mem::take(&mut self.waiting);
        let (op, read) = (waiting.iter().find(|waiting| is_lora(waiting)).map(|lora| lora.op), self.maker.take());
        let read = read.and_then(|maker| maker.passed_on(&waiting));
        let mut all = together(waiting, passes_on);
        if let (Some(read), Some(at)) = (read, all.iter().position(|(of, _)| Some(*of) == op)) {
            let (_, narrow) = all.remove(at);
            let maker = self.issued.last_mut().expect("it has been issued");
            maker.launch.work = maker.launch.work.and(narrow.work).without(read);
        }
        all
    }

    /// The same where nothing follows.
    pub(super) fn finished(mut self) -> Self {
        self.flush();
        self
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Issued> {
        self.issued.iter().copied()
    }

    /// How many run what is of this kind.
    pub fn count(&self, kind: LaunchKind) -> usize {
        self.iter().filter(|issued| issued.launch.kind == kind).count()
    }

    /// The work of all of them.
    pub fn work(&self) -> Work {
        self.iter().fold(Work::default(), |sum, issued| sum.and(issued.launch.work))
    }
}

/// The one launch of two operations that follow each other, if the CUDA backend makes one of them.
fn joined(last: Issued, next: Issued) -> Option<Issued> {
    let (before, after) = (last.launch.work, next.launch.work);
    // The operation, and elements of the accumulation dtype that the second reads of the first.
    let (op, passed_on) = match (last.op, next.op) {
        _ if last.joint => return None,
        // A norm makes the sum that it reads.
        ("residual_fwd", "rms_norm_fwd") if before.compute == after.compute => (next.op, before.compute),
        // What a norm's backward makes is rounded there.
        ("rms_norm_bwd", "cast") => (last.op, after.acc),
        // Queries and keys are rotated together.
        ("rope_fwd", "rope_fwd") | ("rope_bwd", "rope_bwd") => (next.op, 0),
        _ => return None,
    };
    let both = before.and(after);
    let work = Work { acc: both.acc - passed_on, ..both };
    Some(Issued { op, launch: Launch { work, ..next.launch }, joint: true })
}

/// An operation of a projection that is not launched yet.
#[derive(Clone, Debug)]
struct Waiting {
    op: &'static str,
    part: Projected,
    launches: Vec<Launch>,
}

/// Whether an operation goes with the projections that begin with another.
fn joins(first: Projected, next: Projected) -> bool {
    use Projected::{InputGradient, Lora, LoraGradient, Product, Rotated};
    match (first, next) {
        (Product { .. } | Lora(_), Product { .. } | Lora(_) | Rotated { .. }) | (Rotated { .. }, Rotated { .. }) => {
            true
        }
        (InputGradient { .. }, LoraGradient(lora)) => lora.adds,
        (LoraGradient(first), LoraGradient(next)) => first.adds == next.adds,
        (InputGradient { .. }, InputGradient { adds, .. }) => adds,
        (LoraGradient(lora), InputGradient { adds, .. }) => lora.adds && adds,
        _ => false,
    }
}

fn is_lora(waiting: &Waiting) -> bool {
    matches!(waiting.part, Projected::Lora(_) | Projected::LoraGradient(_))
}

/// Whether the launch of three LoRAs, of queries, keys and values, may rotate what the first of them, or the next, adds to.
fn rotates(waiting: &[Waiting], len: usize) -> bool {
    let (loras, rest): (Vec<&Waiting>, Vec<&Waiting>) = waiting.iter().partition(|waiting| is_lora(waiting));
    let before = rest.iter().filter(|waiting| is_rotation(waiting)).count();
    let adds = |lora: &&Waiting| matches!(lora.part, Projected::Lora(ProjectedLora { all: true, adds: true, .. }));
    loras.len() == TOGETHER
        && loras.iter().all(|lora| adds(lora) && lora.part == loras[0].part)
        && loras.get(before).is_some_and(|lora| lora.launches[1].work.compute == 2 * len as u64)
}

fn is_rotation(waiting: &Waiting) -> bool {
    matches!(waiting.part, Projected::Rotated { .. })
}

/// What the last launch of some projections passes on in registers, neither written nor read, to an operation whose first launch it
/// does as well. None if it does not.
fn passed_on(waiting: &[Waiting], next: Projected) -> Option<Work> {
    let loras: Vec<&Waiting> = waiting.iter().filter(|waiting| is_lora(waiting)).collect();
    let (first, count) = (*loras.first()?, loras.len());
    let alike = loras.iter().all(|lora| lora.part == first.part);
    match (first.part, next) {
        (Projected::Lora(ProjectedLora { all: true, adds: true, .. }), Projected::Gated { len }) => {
            let fits = |lora: &&Waiting| lora.launches[1].work.compute == 2 * len as u64;
            (alike && count == 2 && loras.iter().all(fits)).then(|| Work::moved(0, 2 * len, 0))
        }
        (
            Projected::LoraGradient(ProjectedLora { all: true, adds: true, rows, input, .. }),
            Projected::GatedGradient { len },
        ) => (count == 1 && rows * input == len).then(|| Work::moved(2 * len, 0, 0)),
        (
            Projected::LoraGradient(ProjectedLora { all: true, adds: true, in_vectors: true, rows, input, .. }),
            Projected::HeadGradient { len },
        ) => (alike && count <= TOGETHER && rows * input == len).then(|| Work::moved(2 * len, 0, 0)),
        _ => None,
    }
}

/// A launch that makes a gated activation, or its gradients, of all rows.
#[derive(Clone, Copy, Debug)]
struct Maker {
    rows: usize,
    /// Elements of a row.
    width: usize,
    /// Whether it makes gradients.
    gradients: bool,
}

impl Maker {
    /// The last of LoRAs that wait, if what is next is an activation or its gradient and they have vectors.
    fn new(waiting: &[Waiting], next: Option<Projected>) -> Option<Self> {
        let (len, gradients) = match next? {
            Projected::Gated { len } => (len, false),
            Projected::GatedGradient { len } => (len, true),
            _ => return None,
        };
        let (Projected::Lora(lora) | Projected::LoraGradient(lora)) = waiting.iter().find(|one| is_lora(one))?.part
        else {
            return None;
        };
        lora.in_vectors.then(|| Self { rows: lora.rows, width: len / lora.rows.max(1), gradients })
    }

    /// What the first launch of LoRAs that read what it makes would read, if it makes what that makes: `xa` of a down-projection, or the
    /// gradients of that of a gate and an up-projection.
    fn passed_on(self, waiting: &[Waiting]) -> Option<Work> {
        let Self { rows, width, gradients } = self;
        let loras: Vec<&Waiting> = waiting.iter().filter(|waiting| is_lora(waiting)).collect();
        let fits = |lora: ProjectedLora, gradient: bool| {
            let alike =
                lora.all && lora.rows == rows && lora.in_vectors && loras.iter().all(|one| one.part == loras[0].part);
            alike && gradient == gradients && lora.rank <= RANKS && made_in_parts(width)
        };
        let fits = match loras.first()?.part {
            Projected::Lora(lora) => fits(lora, false) && loras.len() == 1 && lora.input == width,
            Projected::LoraGradient(lora) => fits(lora, true) && loras.len() == 2,
            _ => false,
        };
        let read = Work::moved(0, rows * width, 0);
        let fits = fits && loras.iter().all(|lora| lora.launches[0].work.compute == read.compute);
        fits.then(|| loras.iter().fold(Work::default(), |sum, _| sum.and(read)))
    }
}

/// Whether the last launch of several projections rounds the gradient that it adds up of what they set apart, for the next operation.
fn rounded(waiting: &[Waiting], next: Projected) -> bool {
    let (loras, products): (Vec<_>, Vec<_>) = waiting.iter().cloned().partition(is_lora);
    let (Some(first), Projected::NormGradient { len }) = (loras.first(), next) else { return false };
    let fits = |ProjectedLora { rows, input, .. }: ProjectedLora| rows * input == len;
    let one_launch = loras.len() <= TOGETHER && loras.iter().all(|lora| lora.part == first.part);
    matches!(first.part, Projected::LoraGradient(lora) if fits(lora))
        && one_launch
        && matches!(products.first(), Some(Waiting { part: Projected::InputGradient { adds: false, .. }, .. }))
        && products.len() > 1
        && terms(&products, &loras, true).is_some()
}

/// The launches of projections of one input: products first, then LoRAs, as many of them through one as may be, of which the last
/// may pass its sum on.
fn together(waiting: Vec<Waiting>, passes_on: bool) -> Vec<(&'static str, Launch)> {
    let (rotations, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_rotation);
    let (loras, products): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_lora);
    // The products set terms of the input's gradient, which the first launch of LoRAs adds up.
    let terms = terms(&products, &loras, passes_on);
    let mut all = Vec::new();
    for group in products.chunk_by(|a, b| terms.is_some() || joint(a, b)) {
        // Weights that are decoded, each by itself, then the product of all.
        let product = group[0].launches.len() - 1;
        all.extend(group.iter().flat_map(|one| one.launches[..product].iter().map(|launch| (one.op, *launch))));
        all.push((group[0].op, one(group, product)));
    }
    let first = all.iter_mut().find(|(_, launch)| launch.kind == LaunchKind::Product);
    if let (Some(Terms { len, .. }), Some((_, products))) = (terms, first) {
        products.work = products.work.without(Work::moved(len, 0, 0)).and(Work::moved(0, len, 0));
    }
    let groups = loras.chunk_by(|a, b| a.part == b.part).flat_map(|alike| alike.chunks(TOGETHER));
    for (i, group) in groups.enumerate() {
        for stage in 0..group[0].launches.len() {
            let mut launch = one(group, stage);
            if let (Some(terms), 0, 1) = (terms, i, stage) {
                launch.work = launch.work.and(Work::moved(0, terms.len, 0)).without(terms.not_read);
            }
            all.push((group[0].op, launch));
        }
    }
    // Angles are read; what is rotated is in registers.
    for rotation in rotations {
        let (_, last) = all.last_mut().expect("LoRAs rotate");
        last.work = last.work.and(Work { compute: 0, ..rotation.launches[0].work });
    }
    all
}

/// Whether a product may be one with the next: the outputs of q, k and v, and of gate and up, lie side by side, and so do weights that
/// are decoded before it.
fn joint(product: &Waiting, next: &Waiting) -> bool {
    let whole = |waiting: &Waiting| waiting.launches.last().is_some_and(|last| last.kind == LaunchKind::Product);
    let plain = matches!(product.part, Projected::Product { bias: false, .. });
    plain && product.part == next.part && product.launches.len() == next.launches.len() && whole(product)
}

/// Terms of an input's gradient.
#[derive(Clone, Copy)]
struct Terms {
    /// Elements of all, which are of the compute dtype.
    len: usize,
    /// What is there before, if they are put in its place.
    not_read: Work,
}

/// Those that products of several projections set, if they are alike and LoRAs go over all rows, or that of one, if the sum is passed
/// on.
fn terms(products: &[Waiting], loras: &[Waiting], passes_on: bool) -> Option<Terms> {
    let Projected::InputGradient { dims: [rows, input, _], adds } = products.first()?.part else { return None };
    let dims = |waiting: &Waiting| match waiting.part {
        Projected::InputGradient { dims, .. } => Some(dims),
        _ => None,
    };
    let whole = matches!(loras.first()?.part, Projected::LoraGradient(ProjectedLora { all: true, .. }));
    let several = products.len() > 1 || passes_on && !adds;
    let like =
        |product: &Waiting| dims(product) == dims(&products[0]) && product.launches.len() == products[0].launches.len();
    let alike = several && products.iter().all(like);
    let len = rows * input;
    let not_read = Work::moved(if adds { 0 } else { len }, 0, 0);
    (whole && alike).then(|| Terms { len: products.len() * len, not_read })
}

/// One launch for that many operations, of each its launch number `stage`; what they share is read and written once.
fn one(group: &[Waiting], stage: usize) -> Launch {
    let first = group[0].launches[stage];
    let work = group[1..]
        .iter()
        .fold(first.work, |sum, next| sum.and(next.launches[stage].work).without(shared(next.part, stage)));
    // Of products that set a term each, the first may add as well.
    let adds = group.len() > 1 && matches!(group[0].part, Projected::InputGradient { adds: true, .. });
    let work = if adds { work.without(shared(group[0].part, stage)) } else { work };
    Launch { work, ..first }
}

/// What an operation's launch number `stage` does not read or write again where that of another one has.
fn shared(part: Projected, stage: usize) -> Work {
    match (part, stage) {
        (Projected::Product { dims: [rows, input, _], .. }, _) => Work::moved(0, rows * input, 0),
        // What was there is not read.
        (Projected::InputGradient { dims: [rows, input, _], adds }, _) => {
            Work::moved(if adds { rows * input } else { 0 }, 0, 0)
        }
        (Projected::Lora(ProjectedLora { rows, input, .. }), 0) => Work::moved(0, rows * input, 0),
        (Projected::LoraGradient(ProjectedLora { rows, input, adds, .. }), 1) => {
            Work::moved(if adds { 2 * rows * input } else { 0 }, rows * input, 0)
        }
        _ => Work::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_launch_once() {
        let mut launches = Launches::default();
        let kernel = |acc, compute| [Launch::kernel(Work::moved(acc, compute, 0))];
        for (op, launch) in [
            ("residual_fwd", kernel(2 * 6, 6)),
            ("rms_norm_fwd", kernel(6 + 2, 6)),
            ("rope_fwd", kernel(0, 8)),
            ("rope_fwd", kernel(0, 4)),
            ("rope_fwd", kernel(0, 4)),
            ("residual_fwd", kernel(2 * 6, 6)),
            ("rms_norm_fwd", kernel(3 + 1, 3)),
        ] {
            launches.add(op, None, launch.to_vec());
        }
        let found: Vec<_> = launches.iter().map(|i| (i.op, i.launch.work.acc, i.launch.work.compute)).collect();
        let sums = [("rms_norm_fwd", 2 * 6 + 2, 12), ("rope_fwd", 0, 12), ("rope_fwd", 0, 4)];
        assert_eq!(found, [&sums[..], &[("residual_fwd", 12, 6), ("rms_norm_fwd", 4, 3)]].concat());
    }
}
