//! From launches to milliseconds by stated constants: what a GPU that nobody has rented yet would take.
//!
//! A launch takes what every launch of its kind takes, and beside it the longer of two times: its bytes at the rate of the
//! memory, its products at that of the tensor cores, each times the share that launches of this kind reach. Launches follow
//! each other, and nothing stays in a cache from one to the next. Nothing of it was measured here: where there is a device,
//! `cargo bench --bench device` and `--profile` say what it does.
//!
//! Peaks are those of NVIDIA's data sheets of A100 80 GB SXM, H100 SXM and H200 SXM, without sparsity, with which those of H100
//! and H200 give twice as much.

use std::collections::BTreeMap;

use super::launches::Launches;
use super::op::{Launch, LaunchKind, Work};

/// A kind of GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceModel {
    /// Its name.
    pub name: &'static str,
    /// Floating-point operations a second of its tensor cores: bf16 and f16, dense.
    pub half_flops: f64,
    /// The same of f32, which has no tensor cores at full precision.
    pub single_flops: f64,
    /// Bytes a second of its memory.
    pub bandwidth: f64,
    /// Bytes of its memory.
    pub memory: usize,
    /// Its multiprocessors.
    pub multiprocessors: usize,
    /// What launches reach of that, and what they take beside it.
    pub rates: Rates,
}

/// What launches reach of the peaks, and what each of them takes beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Share of the peak of products that the vendor's library reaches.
    pub product_flops: f64,
    /// Share of the memory's rate that it reaches.
    pub product_bandwidth: f64,
    /// Share of the peak of products that kernels of ours reach.
    pub kernel_flops: f64,
    /// Share of the memory's rate that they, fills and copies reach.
    pub kernel_bandwidth: f64,
    /// Seconds from the end of a launch to the beginning of the next, in a graph.
    pub gap: f64,
    /// Seconds of a launch of a kernel or a product without its work: the first loads, and the last wave.
    pub start: f64,
    /// The same of a fill or a copy.
    pub move_start: f64,
}

/// Those of a static reading of the kernels (registers, instructions, accesses, a model of latencies) and of what is published of
/// such devices; never checked on one.
///
/// Products: 600 of 989 TFLOP/s for one projection at 512 rows, and 92 % of the 4.3 TB/s that a copy reaches of 4.8. Kernels:
/// attention at 150 TFLOP/s of 989, and 80 % of those 4.3 TB/s. A gap of 1.0 us in a graph (1.8 on a stream), and 2 us of a launch
/// that are no work.
const READ_FROM_CODE: Rates = Rates {
    product_flops: 0.61,
    product_bandwidth: 0.82,
    kernel_flops: 0.15,
    kernel_bandwidth: 0.72,
    gap: 1.0e-6,
    start: 2.0e-6,
    move_start: 1.2e-6,
};

impl DeviceModel {
    /// NVIDIA A100 80 GB SXM.
    pub const A100: Self = Self {
        name: "a100",
        half_flops: 312e12,
        single_flops: 19.5e12,
        bandwidth: 2.039e12,
        memory: 80_000_000_000,
        multiprocessors: 108,
        rates: READ_FROM_CODE,
    };
    /// NVIDIA H100 SXM.
    pub const H100: Self = Self {
        name: "h100",
        half_flops: 989e12,
        single_flops: 67e12,
        bandwidth: 3.35e12,
        memory: 80_000_000_000,
        multiprocessors: 132,
        rates: READ_FROM_CODE,
    };
    /// NVIDIA H200 SXM.
    pub const H200: Self = Self { name: "h200", bandwidth: 4.8e12, memory: 141_000_000_000, ..Self::H100 };

    /// The peak of products of elements of so many bytes.
    pub fn flops(&self, element_size: usize) -> f64 {
        if element_size == 2 { self.half_flops } else { self.single_flops }
    }

    /// Seconds of a launch, with the gap behind it, on elements of these sizes.
    fn seconds(&self, launch: Launch, element_sizes: (usize, usize)) -> f64 {
        let Rates { product_flops, product_bandwidth, kernel_flops, kernel_bandwidth, gap, start, move_start } =
            self.rates;
        let (flops, bandwidth, start) = match launch.kind {
            LaunchKind::Product => (product_flops, product_bandwidth, start),
            LaunchKind::Kernel => (kernel_flops, kernel_bandwidth, start),
            LaunchKind::Fill | LaunchKind::Copy => (kernel_flops, kernel_bandwidth, move_start),
        };
        let multiplies = launch.work.flops as f64 / (flops * self.flops(element_sizes.1));
        let moves = launch.work.bytes(element_sizes) as f64 / (bandwidth * self.bandwidth);
        gap + start + multiplies.max(moves)
    }

    /// What these launches would take, on elements of the accumulation and of the compute dtype of these sizes.
    pub fn predict(&self, launches: &Launches, element_sizes: (usize, usize)) -> Prediction {
        let mut prediction = Prediction::default();
        for issued in launches.iter() {
            let Launch { kind, work: Work { flops, .. } } = issued.launch;
            let bytes = issued.launch.work.bytes(element_sizes);
            let seconds = self.seconds(issued.launch, element_sizes);
            let share = prediction.shares.entry((issued.op, kind)).or_default();
            for sum in [share, &mut prediction.total] {
                sum.launches += 1;
                sum.bytes += bytes;
                sum.flops += flops;
                sum.seconds += seconds;
            }
        }
        prediction
    }
}

/// What some launches take together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Predicted {
    /// How many there are.
    pub launches: u64,
    /// Bytes that they read and write.
    pub bytes: u64,
    /// Floating-point operations of products.
    pub flops: u64,
    /// Seconds.
    pub seconds: f64,
}

/// What launches would take, by operation and by what is launched for it, and in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// By operation.
    pub shares: BTreeMap<(&'static str, LaunchKind), Predicted>,
    /// Of all of them.
    pub total: Predicted,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launches() -> Launches {
        let mut launches = Launches::default();
        launches.add("linear_fwd", None, vec![Launch::product(Work::moved(0, 64, 128).multiplied(1 << 20))]);
        launches.add("cast", None, vec![Launch::kernel(Work::moved(1 << 20, 1 << 20, 0))]);
        launches.add("zero", None, vec![Launch::fill(Work::moved(100, 0, 0))]);
        launches
    }

    #[test]
    fn prediction_is_that_of_the_stated_rule() {
        let predicted = DeviceModel::H200.predict(&launches(), (4, 2));
        let product = 3.0e-6 + f64::from(2 << 20) / (0.61 * 989e12);
        let cast = 3.0e-6 + f64::from(6 << 20) / (0.72 * 4.8e12);
        let zero = 2.2e-6 + 400.0 / (0.72 * 4.8e12);
        assert!((predicted.total.seconds - (product + cast + zero)).abs() < 1e-12, "{predicted:?}");
        let Predicted { launches, bytes, flops, .. } = predicted.total;
        assert_eq!((launches, bytes, flops), (3, 2 * 192 + (6 << 20) + 400, 2 << 20));
        let cast_alone = predicted.shares[&("cast", LaunchKind::Kernel)];
        assert!((cast_alone.seconds - cast).abs() < 1e-12);
    }

    #[test]
    fn every_constant_moves_the_prediction() {
        let model = DeviceModel::H200;
        let seconds = |model: DeviceModel, sizes| model.predict(&launches(), sizes).total.seconds;
        let before = seconds(model, (4, 2));
        let rates = |rates| DeviceModel { rates, ..model };
        let Rates { product_flops, kernel_bandwidth, gap, start, move_start, .. } = model.rates;
        for other in [
            DeviceModel { half_flops: 0.9 * model.half_flops, ..model },
            DeviceModel { bandwidth: 0.9 * model.bandwidth, ..model },
            rates(Rates { product_flops: 0.9 * product_flops, ..model.rates }),
            rates(Rates { kernel_bandwidth: 0.9 * kernel_bandwidth, ..model.rates }),
            rates(Rates { gap: 1.1 * gap, ..model.rates }),
            rates(Rates { start: 1.1 * start, ..model.rates }),
            rates(Rates { move_start: 1.1 * move_start, ..model.rates }),
        ] {
            assert!(seconds(other, (4, 2)) > before, "{other:?}");
        }
        // The other two bind where there is more of the other.
        let mut bound = Launches::default();
        bound.add("linear_fwd", None, vec![Launch::product(Work::moved(0, 0, 1 << 20))]);
        bound.add("attention_fwd", None, vec![Launch::kernel(Work::default().multiplied(1 << 40))]);
        let seconds_of = |model: DeviceModel| model.predict(&bound, (4, 2)).total.seconds;
        let Rates { product_bandwidth, kernel_flops, .. } = model.rates;
        for other in [
            Rates { product_bandwidth: 0.9 * product_bandwidth, ..model.rates },
            Rates { kernel_flops: 0.9 * kernel_flops, ..model.rates },
        ] {
            assert!(seconds_of(rates(other)) > seconds_of(model), "{other:?}");
        }
        let single = DeviceModel { single_flops: 0.9 * model.single_flops, ..model };
        assert!(seconds(single, (4, 4)) > seconds(model, (4, 4)));
    }
}
