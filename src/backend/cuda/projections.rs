//! Projections that share an input: products and LoRAs that are asked for one after another go on the command list together,
//! first the products, then the LoRAs, as many of them through one launch as may be.

use super::Cuda;
use super::context::scratch::Room;
use super::context::{Context, Deferred};
use super::fused::Rotation;
use super::gemm::{Gemm, GemmShape, Operands};
use super::launch::{Arg, acc_ptr, assert_on, compute_ptr};
use super::lora_launch::{self, InputGradient, Lora, OfGradient, Rotations, Terms};
use super::memory::DevicePtr;
use super::weight::{Blocks, Operand};
use crate::backend::ops::{LoraBwd, LoraFwd, Op};

/// What projections have in common.
#[derive(Clone, Copy, PartialEq)]
pub enum Shared {
    /// The input of forwards.
    Input(DevicePtr),
    /// The gradient of the input, to which backwards add; none where nobody needs it.
    InputGradient(Option<DevicePtr>),
}

/// A product with a weight.
#[derive(Clone, Copy)]
pub struct Product {
    op: &'static str,
    gemm: Gemm,
    weight: Operand,
}

impl Product {
    /// That of an operation, which reads its weight where [`Operand::ptr`] says.
    pub fn new(op: &'static str, gemm: Gemm, weight: Operand) -> Self {
        Self { op, gemm, weight }
    }

    /// What is decoded just before it to where its weight is read, and the room that there is.
    fn decoded(&self) -> Option<(Blocks, Room)> {
        match self.weight {
            Operand::Quantized(blocks, room) => Some((blocks, room)),
            _ => None,
        }
    }

    /// The codes of its weight, if it decodes them itself.
    fn codes(&self) -> Option<Blocks> {
        match self.weight {
            Operand::Codes(blocks) => Some(blocks),
            _ => None,
        }
    }

    /// The same, its weight decoded behind that of another, if there is room: both can be read by one product then.
    fn beside(self, other: Option<&Self>, size: usize) -> Self {
        let Some((blocks, room)) = self.decoded() else { return self };
        let end = other.and_then(|other| Some(other.gemm.operands.a.add(other.decoded()?.0.decoded_bytes(size))));
        let taken =
            end.and_then(|end| room.at.to(end)).filter(|taken| taken + blocks.decoded_bytes(size) <= room.bytes);
        self.at(Operands { a: room.at.add(taken.unwrap_or(0)), ..self.gemm.operands })
    }

    /// The same of other operands.
    fn at(self, operands: Operands) -> Self {
        Self { gemm: Gemm::new(self.gemm.shape, operands), ..self }
    }

    /// This and the next as one, if they lie so, and their weights not in one place one after the other.
    fn joined(&self, next: &Self, size: usize) -> Option<Self> {
        let apart = self.decoded().is_none() || self.gemm.operands.a != next.gemm.operands.a;
        let products = [self, next].iter().all(|product| product.codes().is_none());
        let gemm = self.gemm.joined(&next.gemm, size).filter(|_| apart && products)?;
        Some(Self { gemm, ..*self })
    }

    /// Puts it on the list by itself.
    pub fn launch(self, cx: &mut Context) {
        put(cx, &[self]);
    }

    /// Puts on the list what makes the elements of its weight.
    fn decode(&self, cx: &mut Context) {
        if let Some((blocks, _)) = self.decoded() {
            blocks.decode(cx, self.op, self.gemm.operands.a);
        }
    }
}

/// Products and LoRAs that are not on the list yet.
pub struct Projections {
    /// What goes on the list before, and may make what the LoRAs begin with.
    before: Option<Box<Making>>,
    shared: Shared,
    products: Vec<Product>,
    loras: Vec<Lora>,
    rotations: Rotations,
}

impl Projections {
    /// Of nothing yet, behind what is deferred, if they may be.
    fn new(cx: &mut Context, shared: Shared) -> Self {
        let before = cx.take_deferred(|_: &Making| true).map(Box::new);
        Self { before, shared, products: Vec::new(), loras: Vec::new(), rotations: Rotations::default() }
    }

    /// Adds a rotation of what the first or the next LoRA adds to, if the same launch can rotate it. Returns whether it can.
    pub fn rotate(cx: &mut Context, rotation: &Rotation) -> bool {
        let joins = |group: &Self| {
            matches!(group.shared, Shared::Input(_))
                && rotation.is_whole()
                && lora_launch::rotates(
                    &group.loras,
                    group.rotations,
                    rotation.next(group.rotations),
                    rotation.tensor(),
                )
        };
        let Some(group) = cx.join_deferred(joins) else { return false };
        group.rotations = rotation.next(group.rotations);
        true
    }

    /// Adds a product, which goes ahead of the LoRAs that were added before.
    ///
    /// # Panics
    /// If an operand is another device's.
    #[track_caller]
    pub fn add_product(cx: &mut Context, shared: Shared, product: Product) {
        let Product { op, gemm, .. } = product;
        gemm.assert_on(op, &cx.device);
        if let Some(blocks) = product.codes().or(product.decoded().map(|(blocks, _)| blocks)) {
            assert_on(op, &blocks.args(), &cx.device);
        }
        let size = cx.dtype.size();
        let joins = |group: &Self| {
            group.shared == shared
                && group.rotations.count == 0
                && match shared {
                    Shared::Input(_) => !group.touches(gemm.operands.d),
                    Shared::InputGradient(_) => gemm.shape.accumulate,
                }
        };
        match cx.join_deferred(joins) {
            Some(group) => group.products.push(product.beside(group.products.last(), size)),
            None => {
                let group = Self { products: vec![product], ..Self::new(cx, shared) };
                cx.defer(op, &[], group);
            }
        }
    }

    /// Adds a LoRA.
    ///
    /// # Panics
    /// If an operand is another device's.
    #[track_caller]
    pub fn add_lora(cx: &mut Context, op: &'static str, shared: Shared, lora: Lora) {
        let args = lora.args();
        match cx.join_deferred(|group: &Self| group.shared == shared && group.rotations.count == 0) {
            Some(group) => group.loras.push(lora),
            None => {
                let group = Self { loras: vec![lora], ..Self::new(cx, shared) };
                cx.defer(op, &args, group);
            }
        }
    }

    /// Whether the LoRAs are those of a gate and an up-projection `[len]` and go over all rows in one launch.
    pub fn makes_gated(&self, gate_up: [DevicePtr; 2], len: usize) -> bool {
        matches!(self.shared, Shared::Input(_)) && lora_launch::makes_gated(&self.loras, gate_up.map(compute_ptr), len)
    }

    /// Whether this is the gradient `[len]` of a gated activation, and can go on to its gate and its up-projection.
    pub fn makes_gated_gradient(&self, d_act: DevicePtr, len: usize) -> bool {
        let one = self.shared == Shared::InputGradient(Some(d_act)) && self.loras.len() == 1;
        one && lora_launch::makes_input_gradient(&self.loras, len, None)
    }

    /// Whether this is the gradient `[len]` of the input of a projection, to which its LoRA adds in all rows in one launch, which can
    /// make this of it.
    pub fn makes_input_gradient(&self, d_x: DevicePtr, len: usize, made: OfGradient) -> bool {
        self.shared == Shared::InputGradient(Some(d_x))
            && lora_launch::makes_input_gradient(&self.loras, len, Some(made))
    }

    /// Whether this is the gradient `[len]` of the input of several projections, which one launch adds up of terms that do not lie
    /// there; `size` is that of an element of the compute dtype in bytes.
    pub fn makes_rounded_gradient(&self, d_x: DevicePtr, len: usize, size: usize) -> bool {
        let sets = self.products.first().is_some_and(|first| !first.gemm.shape.accumulate);
        let apart = self.products.len() > 1 && apart(&self.products, d_x, size).is_some();
        sets && apart && self.makes_input_gradient(d_x, len, OfGradient::Rounded(compute_ptr(d_x)))
    }

    /// Puts all on the list, with what is made of the input's gradient.
    pub fn launch(mut self, cx: &mut Context, made: Option<OfGradient>) {
        let ranks = self.launch_before(cx);
        match self.shared {
            Shared::Input(_) => {
                put(cx, &self.products);
                lora_launch::forward(cx, LoraFwd::<Cuda>::NAME, &self.loras, ranks, self.rotations);
            }
            Shared::InputGradient(d_x) => {
                let d_x = d_x.map(|d_x| InputGradient { made, ..self.put_gradient(cx, d_x, made.is_some()) });
                lora_launch::backward(cx, LoraBwd::<Cuda>::NAME, &self.loras, ranks, d_x);
            }
        }
    }

    /// Puts on the list what comes before. Returns what the LoRAs begin with, if that makes it.
    fn launch_before(&mut self, cx: &mut Context) -> Option<Arg> {
        self.before.take().and_then(|before| before.launch_with(cx, &self.loras))
    }

    /// Puts on the list the products that make the input's gradient, which may be left nowhere.
    fn put_gradient(&mut self, cx: &mut Context, d_x: DevicePtr, spare: bool) -> InputGradient {
        let spare = spare.then_some(d_x);
        let adds = lora_launch::adds_terms(&self.loras);
        let terms = if adds { terms(cx, &mut self.products, spare) } else { None };
        put(cx, &self.products);
        InputGradient { d_x: acc_ptr(d_x), terms, made: None }
    }

    /// Whether anything here reads or writes this tensor of the compute dtype.
    fn touches(&self, tensor: DevicePtr) -> bool {
        let products = || self.products.iter().map(|product| product.gemm.operands);
        products().any(|operands| [operands.b, operands.d].contains(&tensor))
            || self.loras.iter().any(|lora| lora.args().contains(&compute_ptr(tensor)))
    }
}

/// Puts products on the list, those at equal distances as one.
fn put(cx: &mut Context, products: &[Product]) {
    let size = cx.dtype.size();
    let mut products = products.iter().peekable();
    while let Some(&(mut product)) = products.next() {
        if let Some(blocks) = product.codes() {
            blocks.multiply(cx, product.op, &product.gemm);
            continue;
        }
        product.decode(cx);
        while let Some(both) = products.peek().and_then(|next| product.joined(next, size)) {
            product = both;
            products.next().iter().for_each(|next| next.decode(cx));
        }
        cx.gemm(product.op, product.gemm);
    }
}

/// Products of one size as terms of what they would be added to one after another, in the compute dtype, from `at` on. None if they
/// cannot be one.
fn apart(products: &[Product], at: DevicePtr, size: usize) -> Option<Vec<Product>> {
    let term = |(i, &product): (usize, &Product)| {
        let GemmShape { m, n, .. } = product.gemm.shape;
        let shape = GemmShape { accumulate: false, acc_out: false, ..product.gemm.shape };
        let gemm = Gemm { shape, ..product.gemm };
        Product { gemm, ..product }.at(Operands { d: at.add(i * m * n * size), ..gemm.operands })
    };
    let terms: Vec<_> = products.iter().enumerate().map(term).collect();
    let one = terms[1..].iter().try_fold(terms[0], |all, next| all.joined(next, size));
    one.map(|_| terms)
}

/// Lets products that can be one set terms of the gradient to which they would add one after another; a single one where the gradient
/// itself is left nowhere, whose memory is spare. None if they cannot.
fn terms(cx: &mut Context, products: &mut [Product], spare: Option<DevicePtr>) -> Option<Terms> {
    let (&Product { gemm: first, .. }, count, size) = (products.first()?, products.len(), cx.dtype.size());
    let (len, adds) = (first.shape.m * first.shape.n, first.shape.accumulate);
    let at = match (count, spare) {
        (1, Some(spare)) if !adds => spare,
        (1, _) => return None,
        _ => cx.scratch("terms of the input's gradient", count * len * size)?,
    };
    products.copy_from_slice(&apart(products, at, size)?);
    Some(Terms { at: compute_ptr(at), count, len, adds })
}

impl Deferred for Projections {
    fn launch(self: Box<Self>, cx: &mut Context) {
        Self::launch(*self, cx, None);
    }
}

/// What is made of what projections add up.
pub enum Gated {
    /// `act [len]` of the outputs of a gate and an up-projection.
    Activation(Arg),
    /// `d_gate`, `d_up`, of `gate` and `up` `[len]`, of the gradient of the activation.
    Gradient(Box<[Arg; 4]>),
}

impl Gated {
    fn args(&self) -> &[Arg] {
        match self {
            Self::Activation(act) => std::slice::from_ref(act),
            Self::Gradient(args) => &args[..],
        }
    }
}

/// Projections with what is made of what they add up. The ranks of the LoRAs that read it can be made of what is in registers.
pub struct Making {
    of: Projections,
    made: Gated,
}

impl Making {
    /// Leaves it to the next operation, with the deferred projections that make it, if they fit. Returns whether they do.
    pub fn defer(cx: &mut Context, op: &'static str, fits: impl FnOnce(&Projections) -> bool, made: Gated) -> bool {
        let Some(of) = cx.take_deferred(fits) else { return false };
        let args = made.args().to_vec();
        cx.defer(op, &args, Self { of, made });
        true
    }

    /// Puts all on the list. Returns what the LoRAs that come next begin with, if that is made as well: `xa`, or `d_xa [LoRAs, N, R]`.
    pub fn launch_with(self, cx: &mut Context, next: &[Lora]) -> Option<Arg> {
        let Self { mut of, made } = self;
        let ranks = of.launch_before(cx);
        match (made, of.shared) {
            (Gated::Activation(act), _) => {
                put(cx, &of.products);
                lora_launch::gated::forward(cx, LoraFwd::<Cuda>::NAME, &of.loras, ranks, act, next)
            }
            (Gated::Gradient(gate), Shared::InputGradient(Some(d_act))) => {
                let d_act = of.put_gradient(cx, d_act, true);
                lora_launch::gated::backward(cx, LoraBwd::<Cuda>::NAME, &of.loras[0], ranks, d_act, *gate, next)
            }
            (Gated::Gradient(_), _) => unreachable!("gated_bwd: the gradient of the activation is that of an input"),
        }
    }
}

impl Deferred for Making {
    fn launch(self: Box<Self>, cx: &mut Context) {
        self.launch_with(cx, &[]);
    }
}
