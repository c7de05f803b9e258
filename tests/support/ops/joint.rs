//! What follows an operation and may go through its launch: asked for at once, or apart, which must give the same bits.

use llamaprobe::arch::{Activation, RmsWeight, RopePairs};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{self, LoraSite};

use super::attention::Attention;
use super::device::{self, Given};
use super::lora::{Drop, Lora};
use super::packs;
use super::rope;
use super::simt::recorder::FILL;

const HALVES: RopePairs = RopePairs::Halves;

/// The largest relative error of rounding to the compute dtype; none where nothing is computed.
fn unit<B: Backend>(b: &mut B) -> f64 {
    let bits = [24, 11, 8].into_iter().find(|bits| {
        let x = device::compute(b, &[1.0 + 2f64.powi(1 - bits)]);
        device::read_compute(b, &x, 1)[0] > 1.0
    });
    bits.map_or(0.0, |bits| 2f64.powi(-bits))
}

impl Lora {
    /// Two other projections of the same input, behind this one in the parameters, where there is room for them.
    pub fn others(&self) -> Option<[LoraSite; 2]> {
        let LoraSite { a, b, stride, rank, output, .. } = self.site;
        let end = b + output * rank;
        let other = |i: usize, output| LoraSite { a: a + i * end, b: b + i * end, output, ..self.site };
        (stride >= 3 * end).then(|| [other(1, output.div_ceil(2)), other(2, output)])
    }

    /// Between others of the same input, as those of queries, keys and values; before the last, as those of gate and up-projection.
    pub fn joint_forwards<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], [before, after]: [LoraSite; 2]) {
        let sites = [before, self.site, after];
        let [joined, apart] = [false, true].map(|apart| self.gated_forward(b, inputs, [sites[1], after], apart));
        assert_eq!(joined, apart, "lora_fwd: gate, up and activation by one launch and by two");
        if before.output.is_multiple_of(64) {
            let [joined, apart] = [false, true].map(|apart| self.rotated_forward(b, inputs, sites, apart));
            assert_eq!(joined, apart, "lora_fwd: queries and keys by one launch and by two");
        }
    }

    /// Of an input that is an activation, and of one that is an attention's output.
    pub fn joint_backward<B: Backend>(
        &self,
        b: &mut B,
        given: &Given<'_>,
        acc: [&B::Acc; 2],
        compute: [&B::Compute; 2],
    ) {
        let [joined, apart] = [false, true].map(|apart| self.gated_backward(b, given, acc, compute, apart));
        assert_eq!(joined, apart, "lora_bwd: d_gate, d_up and d_params by one launch and by two");
        if self.site.input.is_multiple_of(256) {
            let [joined, apart] = [false, true].map(|apart| self.attended_backward(b, given, acc, compute, apart));
            assert!(joined.iter().flatten().all(|x| x.is_finite()), "lora_bwd: d_q, d_k, d_v and d_params are numbers");
            assert_eq!(joined, apart, "lora_bwd: d_q, d_k, d_v and d_params with and without attention_bwd's delta");
        }
        let Some([_, after]) = self.others() else { return };
        for sites in [&[self.site][..], &[self.site, after]] {
            let [joined, apart] =
                [false, true].map(|apart| self.produced_backward(b, given, acc, compute, sites, apart));
            let largest = apart.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
            // Terms may be rounded, and their sum: the most that was measured on the fake driver is 1.2 units. What is not rounded
            // is added up in another order: by 2.1 units of f32 on the CPU.
            let limit = (2.0 * unit(b) + 4.0 * 2f64.powi(-24)) * largest;
            let within = joined.iter().zip(&apart).all(|(a, b)| (a - b).abs() <= limit);
            assert!(within, "lora_bwd behind {} products: off by more than {limit}", sites.len());
        }
    }

    /// A gate and an up-projection to which these LoRAs add, and the activation of both, which is asked for at once or `apart`.
    fn gated_forward<B: Backend>(
        &self,
        b: &mut B,
        inputs: &[Vec<f64>],
        sites: [LoraSite; 2],
        apart: bool,
    ) -> [Vec<f64>; 3] {
        let (x, params, pack) =
            (&device::compute(b, &inputs[1]), &device::acc(b, &inputs[2]), &b.pack(&self.pack).unwrap());
        let (len, dropout) = (inputs[0].len(), Drop::of_device(&self.drop));
        let [mut gate, mut up, mut act] =
            [&inputs[0], &vec![0.25; len], &vec![FILL; len]].map(|y| device::compute(b, y));
        for (site, y) in sites.into_iter().zip([&mut gate, &mut up]) {
            let xa = &mut device::acc(b, &vec![FILL; self.pack.len() * site.rank]);
            b.lora_fwd(ops::LoraFwd { y: Some(y), xa, x, params, pack, site, dropout });
        }
        if apart {
            b.sync().unwrap();
        }
        b.gated_fwd(ops::GatedFwd { act: &mut act, gate: &gate, up: &up, f: Activation::Silu, len });
        [&gate, &up, &act].map(|y| device::read_compute(b, y, len))
    }

    /// Queries, keys and values to which these LoRAs add, of heads of 64, of which the former two are rotated at once or `apart`.
    fn rotated_forward<B: Backend>(
        &self,
        b: &mut B,
        inputs: &[Vec<f64>],
        sites: [LoraSite; 3],
        apart: bool,
    ) -> [Vec<f64>; 3] {
        let (x, params, pack) =
            (&device::compute(b, &inputs[1]), &device::acc(b, &inputs[2]), &b.pack(&self.pack).unwrap());
        let (head_dim, dropout) = (64, Drop::of_device(&self.drop));
        let cos_sin = &device::acc(b, &rope::cos_sin(self.pack.longest(), head_dim));
        let lens = sites.map(|site| self.pack.len() * site.output);
        let mut y = lens.map(|len| device::compute(b, &vec![0.25; len]));
        for (site, y) in sites.into_iter().zip(&mut y) {
            let xa = &mut device::acc(b, &vec![FILL; self.pack.len() * site.rank]);
            b.lora_fwd(ops::LoraFwd { y: Some(y), xa, x, params, pack, site, dropout });
        }
        if apart {
            b.sync().unwrap();
        }
        for (site, x) in sites.into_iter().zip(&mut y[..2]) {
            let heads = site.output / head_dim;
            b.rope_fwd(ops::RopeFwd { x, pack, cos_sin, heads, head_dim, rotary_dim: head_dim, pairs: HALVES });
        }
        std::array::from_fn(|i| device::read_compute(b, &y[i], lens[i]))
    }

    /// The gradients of a gate and an up-projection, whose activation is the input, asked for at once or `apart`, and those of the
    /// parameters.
    fn gated_backward<B: Backend>(
        &self,
        b: &mut B,
        given: &Given<'_>,
        [xa, params]: [&B::Acc; 2],
        [x, d_y]: [&B::Compute; 2],
        apart: bool,
    ) -> [Vec<f64>; 3] {
        let (len, site, dropout) = (given.len(1), self.site, Drop::of_device(&self.drop));
        let [mut d_act, mut d_params] = [1, 2].map(|i| device::acc(b, &given.start[i]));
        let [mut d_gate, mut d_up] = [(); 2].map(|()| device::compute(b, &vec![FILL; len]));
        let (pack, d_x, accumulate) = (&b.pack(&self.pack).unwrap(), Some(&mut d_act), true);
        b.lora_bwd(ops::LoraBwd { d_params: &mut d_params, accumulate, d_x, d_y, xa, x, params, pack, site, dropout });
        if apart {
            b.sync().unwrap();
        }
        let (d_gate_out, d_up_out, d_act, f) = (&mut d_gate, &mut d_up, &mut d_act, Activation::Silu);
        b.gated_bwd(ops::GatedBwd { d_gate: d_gate_out, d_up: d_up_out, d_act, gate: x, up: x, f, len });
        let [d_gate, d_up] = [&d_gate, &d_up].map(|d| device::read_compute(b, d, len));
        [d_gate, d_up, device::read_acc(b, &d_params, given.len(2))]
    }

    /// The gradients behind projections with LoRAs, whose products come first: of one, that of the gate of the activation that is
    /// its input; of two, that of the rows whose norm is theirs. Asked for at once or `apart`.
    fn produced_backward<B: Backend>(
        &self,
        b: &mut B,
        given: &Given<'_>,
        [xa, params]: [&B::Acc; 2],
        [x, d_y]: [&B::Compute; 2],
        sites: &[LoraSite],
        apart: bool,
    ) -> Vec<f64> {
        let (len, dropout) = (given.len(1), Drop::of_device(&self.drop));
        let LoraSite { input: width, output, .. } = self.site;
        let (rows, pack) = (self.pack.len(), &b.pack(&self.pack).unwrap());
        let values: Vec<f64> =
            (0..width * output + sites.len()).map(|i| f64::from((i % 11) as u32) * 0.125 - 0.5).collect();
        let values = device::acc(b, &values);
        b.beside(sites.len());
        let weights: Vec<_> =
            (0..sites.len()).map(|i| b.trainable_weight(&values, i, width * output).unwrap()).collect();
        b.beside(sites.len());
        let mut d_ys: Vec<_> = sites.iter().map(|_| b.compute(rows * output).unwrap()).collect();
        for copy in &mut d_ys {
            b.kv_append(ops::KvAppend { cache: copy, to: 0, x: d_y, from: 0..rows, width: output });
        }
        let ones = &device::weight(b, &vec![1.0; width]);
        let [mut d_in, mut d_rows, mut d_params] = [len, len, given.len(2)].map(|len| device::acc(b, &vec![0.0; len]));
        let (x_acc, rstd) = (&device::acc(b, &given.inputs[1]), &device::acc(b, &vec![0.5; rows]));
        let [mut d_gate, mut d_up] = [(); 2].map(|()| device::compute(b, &vec![FILL; len]));
        let dims = ops::LinearDims { rows, input: width, output };
        // Apart, the products are added up before the LoRAs come.
        let stages: &[[bool; 2]] = if apart { &[[true, false], [false, true]] } else { &[[true, true]] };
        for &[product, lora] in stages {
            for (i, &site) in sites.iter().enumerate() {
                let (d_out, weight, accumulate) = (&d_ys[i], &weights[i], i > 0);
                if product {
                    b.linear_bwd_input(ops::LinearBwdInput { d_x: &mut d_in, d_out, weight, dims, accumulate });
                }
                if lora {
                    let (d_params, d_x, d_y, accumulate) = (&mut d_params, Some(&mut d_in), d_out, true);
                    b.lora_bwd(ops::LoraBwd { d_params, accumulate, d_x, d_y, xa, x, params, pack, site, dropout });
                }
            }
            if apart {
                b.sync().unwrap();
            }
        }
        if sites.len() > 1 {
            let (d_x, d_out, form) = (&mut d_rows, &mut d_in, RmsWeight::Rounded);
            b.rms_norm_bwd(ops::RmsNormBwd { d_x, d_out, x: x_acc, rstd, weight: ones, rows, width, form });
            return device::read_acc(b, &d_rows, len);
        }
        let (d_gate_out, d_up, d_act, f) = (&mut d_gate, &mut d_up, &mut d_in, Activation::Silu);
        b.gated_bwd(ops::GatedBwd { d_gate: d_gate_out, d_up, d_act, gate: x, up: x, f, len });
        device::read_compute(b, &d_gate, len)
    }

    /// The gradients of queries, keys and values, whose attention is the input, asked for at once or `apart`, and those of the
    /// parameters. Queries, keys and values are as the input is.
    fn attended_backward<B: Backend>(
        &self,
        b: &mut B,
        given: &Given<'_>,
        [xa, params]: [&B::Acc; 2],
        [x, d_y]: [&B::Compute; 2],
        apart: bool,
    ) -> [Vec<f64>; 4] {
        let (len, site, dropout) = (given.len(1), self.site, Drop::of_device(&self.drop));
        let dims = packs::heads(site.input / 128, site.input / 128, 128, None);
        let [mut d_z, mut d_params] = [1, 2].map(|i| device::acc(b, &given.start[i]));
        let [mut d_q, mut d_k, mut d_v] = [(); 3].map(|()| device::compute(b, &vec![FILL; len]));
        let [mut delta, mut lse] = [(); 2].map(|()| device::acc(b, &vec![FILL; len / 128]));
        let (pack, d_x) = (&b.pack(&self.pack).unwrap(), Some(&mut d_z));
        let mut z = device::compute(b, &vec![FILL; len]);
        b.attention_fwd(ops::AttentionFwd {
            z: &mut z,
            lse: &mut lse,
            q: x,
            k: x,
            v: x,
            cached: None,
            pack,
            outputs: None,
            dims,
        });
        let (z, d_params_out, accumulate) = (&z, &mut d_params, true);
        let op = ops::LoraBwd { d_params: d_params_out, accumulate, d_x, d_y, xa, x: z, params, pack, site, dropout };
        b.lora_bwd(op);
        if apart {
            b.sync().unwrap();
        }
        b.attention_bwd(ops::AttentionBwd {
            d_q: &mut d_q,
            d_k: &mut d_k,
            d_v: &mut d_v,
            delta: &mut delta,
            d_z: &mut d_z,
            z,
            lse: &lse,
            q: x,
            k: x,
            v: x,
            pack,
            outputs: None,
            dims,
        });
        let [d_q, d_k, d_v] = [&d_q, &d_k, &d_v].map(|d| device::read_compute(b, d, len));
        [d_q, d_k, d_v, device::read_acc(b, &d_params, given.len(2))]
    }
}

impl Attention {
    /// Of heads whose gradients may be rotated back where they are made.
    pub fn joint_backward<B: Backend>(&self, b: &mut B, given: &Given<'_>, saved: &(B::Compute, B::Acc)) {
        if [64, 128].contains(&self.dims.head_dim) {
            let [joined, apart] = [false, true].map(|apart| self.rotated_backward(b, given, saved, apart));
            assert_eq!(joined, apart, "attention_bwd: d_q, d_k and d_v by two launches and by three");
        }
    }

    /// The gradients of queries, keys and values, of which the former two are rotated back at once or `apart`.
    fn rotated_backward<B: Backend>(
        &self,
        b: &mut B,
        given: &Given<'_>,
        saved: &(B::Compute, B::Acc),
        apart: bool,
    ) -> Vec<Option<Vec<f64>>> {
        let dims = self.dims;
        let head_dim = dims.head_dim;
        // An upload between the two would part them.
        let cos_sin = &device::acc(b, &rope::cos_sin(self.pack.longest(), head_dim));
        self.gradients(b, given, saved, (&given.d_outputs[0], None), |b, pack, [d_q, d_k]| {
            if apart {
                b.sync().unwrap();
            }
            for (d_x, heads) in [(d_q, dims.heads), (d_k, dims.kv_heads)] {
                b.rope_bwd(ops::RopeBwd { d_x, pack, cos_sin, heads, head_dim, rotary_dim: head_dim, pairs: HALVES });
            }
        })
    }
}
