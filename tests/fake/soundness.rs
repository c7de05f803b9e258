//! What must not happen whatever goes wrong: memory of one device in another's hands, results that were never written,
//! memory that is freed while a copy still uses it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use llamaprobe::arch::Dtype as ComputeDtype;
use llamaprobe::backend::cuda::Cuda;
use llamaprobe::backend::ops::{
    AttentionDims, AttentionFwd, AttentionOps, Cast, LinearDims, LinearFwd, LinearOps, RowOps,
};
use llamaprobe::backend::{Buffers, Capture, Tensor, Transfer};
use llamaprobe::formats::safetensors::{Bytes, Dtype, TensorView};
use llamaprobe::pack::{Label, PackBuilder, Parent, Token};

use super::{child, cuda};

fn device() -> Cuda {
    cuda::device(ComputeDtype::F32).expect("the fake driver's device")
}

/// What a call panics with.
fn panic_of(call: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(call)).expect_err("no panic");
    payload.downcast_ref::<String>().cloned().unwrap_or_default()
}

/// Arguments of an operation that fails before it runs: there are no kernels for such heads.
struct Unsupported {
    pack: <Cuda as Buffers>::Pack,
    rows: [<Cuda as Buffers>::Compute; 4],
    lse: <Cuda as Buffers>::Acc,
}

impl Unsupported {
    fn new(b: &mut Cuda) -> Self {
        let mut builder = PackBuilder::default();
        builder.push(&[Token::Id(0)], Parent::None, None, Label::Text);
        let pack = b.pack(&builder.build()).expect("a pack");
        let rows = [(); 4].map(|()| b.compute(272).expect("a buffer"));
        Self { pack, rows, lse: b.acc(1).expect("a buffer") }
    }

    /// Fails, and submits nothing.
    fn run(&mut self, b: &mut Cuda) {
        let (heads, kv_heads, head_dim, scale) = (1, 1, 272, 1.0);
        let dims = AttentionDims { heads, kv_heads, head_dim, scale, window: None, alibi: false, softcap: None };
        let [z, q, k, v] = &mut self.rows;
        b.attention_fwd(AttentionFwd {
            z,
            lse: &mut self.lse,
            q,
            k,
            v,
            cached: None,
            pack: &self.pack,
            outputs: None,
            dims,
        });
    }
}

/// `len` elements of the accumulation dtype, none of them 0.
fn filled(b: &mut Cuda, len: usize) -> <Cuda as Buffers>::Acc {
    let mut x = b.acc(len).expect("a buffer");
    b.upload(&mut x, 0, &vec![3.5; len]).expect("an upload");
    x
}

#[test]
#[ignore = "started on the fake driver"]
fn foreign_memory() {
    let (mut a, mut b) = (device(), device());
    let x = b.acc(16).expect("a buffer");
    let w = b.trainable_weight(&x, 0, 16).expect("a weight");
    let [mut out, mut y] = [(); 2].map(|()| a.compute(16).expect("a buffer"));
    let dims = LinearDims { rows: 4, input: 4, output: 4 };
    let found = [
        panic_of(|| a.cast(Cast { out: &mut out, x: &x, len: 16 })),
        panic_of(|| a.linear_fwd(LinearFwd { out: &mut y, x: &out, weight: &w, bias: None, dims })),
        panic_of(|| drop(a.capture(Tensor::Acc(&x), &[0], 4))),
        panic_of(|| drop(a.download(&mut [0.0; 16], &x, 0))),
        panic_of(|| drop(a.download_async(&x, 16))),
    ];
    for (message, op) in found.iter().zip(["cast", "linear_fwd", "capture", "download", "download"]) {
        assert!(message.starts_with(op) && message.contains("memory of another device"), "{op}: {message}");
    }
    // Neither is any the worse for it.
    let own = a.acc(16).expect("a buffer");
    a.cast(Cast { out: &mut out, x: &own, len: 16 });
    a.sync().expect("the device works");
    let mut own = b.compute(16).expect("a buffer");
    b.cast(Cast { out: &mut own, x: &x, len: 16 });
    b.sync().expect("the device works");
}

#[test]
fn buffers_of_another_device_panic() {
    child("soundness::foreign_memory");
}

#[test]
#[ignore = "started on the fake driver"]
fn foreign_readback() {
    let (mut a, mut b) = (device(), device());
    let x = filled(&mut b, 16);
    let pending = b.download_async(&x, 16).expect("a download");
    let error = a.wait_readback(pending).expect_err("another device's readback").to_string();
    assert!(error.starts_with("cuda:0: download: ") && error.contains("another device's"), "{error}");
    let pending = b.download_async(&x, 16).expect("a download");
    assert_eq!(b.wait_readback(pending).expect("its own"), [3.5; 16]);
}

#[test]
fn readback_of_another_device_is_an_error() {
    child("soundness::foreign_readback");
}

#[test]
#[ignore = "started on the fake driver"]
fn dropped_capture() {
    let mut b = device();
    let (x, mut unsupported) = (filled(&mut b, 8), Unsupported::new(&mut b));
    let dropped = b.capture(Tensor::Acc(&x), &[0, 1], 4);
    unsupported.run(&mut b);
    let late = b.capture(Tensor::Acc(&x), &[0, 1], 4);
    // The error is given out once, here; then the device goes on.
    let error = b.download(&mut [0.0; 8], &x, 0).expect_err("of the failed operation").to_string();
    assert!(error.contains("head width on CUDA"), "{error}");
    b.sync().expect("no further error");
    assert!(!dropped.is_ready(), "a capture whose commands were dropped is ready");
    assert!(!late.is_ready(), "a capture asked for after the error is ready");
    let captured = b.capture(Tensor::Acc(&x), &[0, 1], 4);
    b.sync().expect("the device works");
    assert_eq!(captured.rows(), [3.5; 8]);
}

#[test]
fn capture_dropped_after_an_error_is_never_ready() {
    child("soundness::dropped_capture");
}

#[test]
#[ignore = "started on the fake driver"]
fn dropped_download() {
    let mut b = device();
    let (x, mut unsupported) = (filled(&mut b, 8), Unsupported::new(&mut b));
    let pending = b.download_async(&x, 8).expect("a download");
    unsupported.run(&mut b);
    b.download(&mut [0.0; 8], &x, 0).expect_err("of the failed operation");
    let error = b.wait_readback(pending).expect_err("its commands were dropped").to_string();
    assert!(error.contains("discarded after an error"), "{error}");
    let pending = b.download_async(&x, 8).expect("a download");
    assert_eq!(b.wait_readback(pending).expect("the device works"), [3.5; 8]);
}

#[test]
fn download_dropped_after_an_error_is_an_error() {
    child("soundness::dropped_download");
}

#[test]
#[ignore = "started on the fake driver"]
fn refused_weight() {
    let mut b = device();
    const LEN: usize = 1000;
    // At an odd address, so that 16-bit elements cannot be read in place.
    let bytes: &'static [u8] = vec![0u8; 2 * LEN + 2].leak();
    let from = 1 - bytes.as_ptr() as usize % 2;
    let data = Bytes::from_static(&bytes[from..from + 2 * LEN]);
    let view = TensorView { name: "w".into(), dtype: Dtype::BF16, shape: vec![LEN], data };
    let error = b.weight(&view).map(drop).expect_err("a misaligned weight").to_string();
    assert!(error.starts_with("cuda:0: weight: "), "{error}");
    // The same block of memory: nothing may be copied into it any more.
    let zeros = b.acc(LEN).expect("a buffer");
    for _ in 0..2 {
        let mut found = [1.0; LEN];
        b.download(&mut found, &zeros, 0).expect("the device works");
        assert!(found.iter().all(|&x| x == 0.0), "what failed to load is copied into memory that was freed");
        b.sync().expect("the device works");
    }
}

#[test]
fn weight_that_fails_to_load_leaves_no_copy_behind() {
    child("soundness::refused_weight");
}
