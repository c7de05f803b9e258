//! What taps may ask of a pass.

use llamaprobe::backend::trace::Trace;
use llamaprobe::backend::{Buffers, Tensor};
use llamaprobe::hooks::{Site, Tapped, Taps};
use llamaprobe::model::{Activations, Input, Save};
use llamaprobe::pack::forest;
use llamaprobe::{Error, Result};

use super::{branching, models, random};

/// Holds every tensor to what its site says of its dtype.
struct Dtypes;

impl Taps<Trace> for Dtypes {
    fn wants(&self, _: Site, _: usize) -> bool {
        true
    }

    fn tap(&mut self, _: &mut Trace, tapped: Tapped<'_, Trace>) -> Result<()> {
        assert_eq!(tapped.site.is_accumulated(), matches!(tapped.data, Tensor::Acc(_)), "{:?}", tapped.site);
        Ok(())
    }
}

#[test]
fn taps_see_tensors_of_the_dtype_of_their_site() {
    let b = &mut Trace::new();
    for config in models() {
        let (model, _) = random(b, &config);
        let pack = forest(&branching(|_| None), 2).pack;
        let device = b.pack(&pack).expect("pack");
        let mut acts = Activations::new(b, &model.config, None, pack.len(), Save::Layer).expect("memory");
        model.forward(b, &mut acts, &Input::new(&pack, &device), None, &mut Dtypes).expect("a forward");
    }
}

/// Fails at one hook, and remembers every call.
struct Failing {
    at: (Site, usize),
    calls: Vec<(Site, usize)>,
    finished: bool,
}

impl Taps<Trace> for Failing {
    fn wants(&self, _: Site, _: usize) -> bool {
        true
    }

    fn tap(&mut self, _: &mut Trace, tapped: Tapped<'_, Trace>) -> Result<()> {
        self.calls.push((tapped.site, tapped.layer));
        match (tapped.site, tapped.layer) == self.at {
            true => Err(Error::argument("a tap", "nothing", "an error")),
            false => Ok(()),
        }
    }

    fn finish(&mut self, _: &mut Trace) -> Result<()> {
        self.finished = true;
        Ok(())
    }
}

#[test]
fn taps_first_error_ends_the_pass() {
    let b = &mut Trace::new();
    for config in models() {
        let (model, _) = random(b, &config);
        let pack = forest(&branching(|_| None), 2).pack;
        let device = b.pack(&pack).expect("pack");
        let mut acts = Activations::new(b, &model.config, None, pack.len(), Save::Layer).expect("memory");
        let input = Input::new(&pack, &device);
        let mut run = |at| {
            let mut taps = Failing { at, calls: Vec::new(), finished: false };
            let result = model.forward(b, &mut acts, &input, None, &mut taps);
            (result, taps)
        };
        let (result, all) = run((Site::LoraA(llamaprobe::arch::Projection::Q), 0));
        assert!(result.is_ok() && all.finished, "no adapter, no such hook");
        for (i, &hook) in all.calls.iter().enumerate() {
            let (result, taps) = run(hook);
            assert!(result.is_err_and(|error| error.to_string().contains("a tap")), "{hook:?}");
            assert_eq!(taps.calls, all.calls[..=i], "{hook:?}");
            assert!(!taps.finished, "{hook:?}");
        }
    }
}
