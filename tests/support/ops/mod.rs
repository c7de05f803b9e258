//! The operations of the contract under test: for each file of `backend/ops` a file of the same name in `tests/ops`, which
//! says what goes in, computes it naively, and calls it on a device or as launches of its kernels. The checks run over the
//! cases of all files.
#![allow(dead_code, unused_macros, reason = "each test program uses its own part")]

#[path = "../../ops/activation.rs"]
pub mod activation;
#[path = "../../ops/adamw.rs"]
pub mod adamw;
#[path = "../../ops/attention.rs"]
pub mod attention;
#[path = "../../ops/cross_entropy.rs"]
pub mod cross_entropy;
#[path = "../../ops/distillation.rs"]
pub mod distillation;
#[path = "../../ops/edit.rs"]
pub mod edit;
#[path = "../../ops/embed.rs"]
pub mod embed;
#[path = "../../ops/layer_norm.rs"]
pub mod layer_norm;
#[path = "../../ops/linear.rs"]
pub mod linear;
#[path = "../../ops/lora.rs"]
pub mod lora;
#[path = "../../ops/position.rs"]
pub mod position;
#[path = "../../ops/rms_norm.rs"]
pub mod rms_norm;
#[path = "../../ops/rope.rs"]
pub mod rope;
#[path = "../../ops/rows.rs"]
pub mod rows;
#[path = "../../ops/scale.rs"]
pub mod scale;

pub mod cases;
pub mod device;
pub mod joint;
pub mod naive;
pub mod operation;
pub mod packs;
pub mod parity;
pub mod quantized;
#[path = "../../simt/mod.rs"]
pub mod simt;

use llamaprobe::backend::Backend;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use cases::{Case, Set};
use device::{Given, Outputs};
use naive::Precision;
use operation::{Array, Factors, Operation, RowResults};
use simt::recorder::Recorder;

/// Hands the files with their operations to another macro.
macro_rules! with_operations {
    ($then:ident $($arguments:tt)*) => {
        $then! {
            [$($arguments)*]
            activation { Gated Activation }
            adamw { GradNorm CheckFinite Adamw RefreshWeight }
            attention { Attention AttentionOutputs AttentionPattern AttentionResult }
            cross_entropy { Logits CrossEntropy }
            distillation { StateLoss KlLoss }
            edit { Edit }
            embed { Embed EmbedQuantized }
            layer_norm { LayerNorm }
            linear { Linear LinearQuantized }
            lora { Lora LoraDelta LoraGated }
            position { Position }
            rms_norm { RmsNorm RmsNormCompute }
            rope { Rope }
            rows { Zero Cast Widen Residual GatherCompute GatherAcc ScatterCompute KvAppend }
            scale { WeightNorm Scale ScaleDelta }
        }
    };
}

/// The operations as one type, so that one list of cases can hold all.
macro_rules! define_operations {
    ([] $($file:ident { $($op:ident)* })*) => {
        /// One operation with everything that is not an array of numbers.
        #[derive(Clone, Debug)]
        pub enum Op {
            $($($op($file::$op),)*)*
        }

        $($(impl From<$file::$op> for Op {
            fn from(op: $file::$op) -> Self {
                Self::$op(op)
            }
        })*)*

        impl Operation for Op {
            fn factors(&self) -> Factors {
                match self { $($(Self::$op(op) => op.factors(),)*)* }
            }

            fn inputs(&self) -> Vec<Array> {
                match self { $($(Self::$op(op) => op.inputs(),)*)* }
            }

            fn outputs(&self) -> Vec<Array> {
                match self { $($(Self::$op(op) => op.outputs(),)*)* }
            }

            fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
                match self { $($(Self::$op(op) => op.naive_forward(p, inputs),)*)* }
            }

            fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
                match self { $($(Self::$op(op) => op.naive_backward(p, inputs, d_out, d),)*)* }
            }

            fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
                match self { $($(Self::$op(op) => op.forward(b, inputs, out),)*)* }
            }

            fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
                match self { $($(Self::$op(op) => op.backward(b, given),)*)* }
            }

            fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
                match self { $($(Self::$op(op) => op.launch(case, r),)*)* }
            }

            fn row_results(&self) -> Option<RowResults> {
                match self { $($(Self::$op(op) => op.row_results(),)*)* }
            }

            fn select(&self, rows: &[usize], pack: Option<llamaprobe::pack::Pack>) -> Option<Self> {
                match self { $($(Self::$op(op) => op.select(rows, pack).map(Self::$op),)*)* }
            }
        }

        /// The files.
        pub const FILES: &[&str] = &[$(stringify!($file)),*];

        /// A set of cases of a file; what a device's dropout decides is asked of `b`.
        pub fn cases<B: Backend>(b: &mut B, file: &str, set: Set) -> Vec<Case> {
            match file {
                $(stringify!($file) => $file::cases(b, set),)*
                _ => panic!("no file {file} of operations"),
            }
        }

        /// Calls with wrong arguments.
        pub fn refusals<B: Backend>(file: &str) -> Vec<device::Refusal<B>> {
            match file {
                $(stringify!($file) => $file::refusals(),)*
                _ => panic!("no file {file} of operations"),
            }
        }
    };
}
with_operations!(define_operations);

/// For each file of operations a module of tests, `name => function;`, whose functions are given the file's name.
macro_rules! tests_per_file {
    ([$tests:tt] $($file:ident $ops:tt)*) => { $(mod $file { tests_of_file! { $file $tests } })* };
}

macro_rules! tests_of_file {
    ($file:ident { $($test:ident => $run:ident;)* }) => {
        $(#[test]
        fn $test() {
            super::$run(stringify!($file));
        })*
    };
}

/// The cases of a set of all files.
pub fn all<B: Backend>(b: &mut B, set: Set) -> Vec<Case> {
    FILES.iter().flat_map(|file| cases(b, file, set)).collect()
}

/// `len` normal numbers, the same for the same seed.
pub fn normal(seed: u64, len: usize) -> Vec<f64> {
    let rng = ChaCha8Rng::seed_from_u64(seed);
    StandardNormal.sample_iter(rng).take(len).collect()
}
