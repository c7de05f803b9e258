//! Whole models: LoRA steps, captures, runs of one pack against runs one after another, and a shared beginning against
//! repeated ones. Elements are floating-point operations of the products with weights that the work needs; the second
//! way to do a thing is counted as the first, so that their rates compare as their times.
#![allow(missing_docs, reason = "the macros of the harness")]

#[macro_use]
mod common;

use common::training::{Checkpoint, trainers};
use common::{Group, MIDDLE, flat, shared_prefix, time};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::arch::Dtype;
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::trace::Trace;
use llamaprobe::hooks::{NoTaps, Record, Selection, Site};
use llamaprobe::model::{Activations, Input, Model, OutputRows, Save};
use llamaprobe::pack::Pack;

/// Floating-point operations of some work.
fn flops(checkpoint: &Checkpoint, work: impl FnOnce(&mut Trace, Model<Trace>)) -> Throughput {
    let mut trace = Trace::new();
    let model = checkpoint.load(&mut trace);
    trace.clear();
    work(&mut trace, model);
    Throughput::Elements(2 * trace.multiplied())
}

fn step<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("step/{}", b.name()));
    let models = [
        ("7B layer", "7B", 1, &[64, 256, 512][..]),
        ("15M", "15M", 6, &[64, 256]),
        ("110M", "110M", 12, &[256]),
        (MIDDLE.name, MIDDLE.name, 22, &[64]),
    ];
    // Of the largest, gigabytes are written: only in half precision.
    let halves = b.element_sizes().1 == 2;
    for (name, of, layers, lengths) in models.into_iter().filter(|model| halves || model.0 != MIDDLE.name) {
        let checkpoint = Checkpoint::new(b, name, of, layers);
        let mut model = checkpoint.load(b);
        for &tokens in lengths {
            group.throughput(flops(&checkpoint, |b, mut model| {
                trainers(b, &model, [1, 1, tokens], None)[0].step(b, &mut model).expect("a step");
            }));
            let trainer = &mut trainers(b, &model, [1, 1, tokens], None)[0];
            group.bench(name, tokens, |bench| {
                time(bench, b, |b| drop(trainer.step(b, &mut model).expect("a step")));
            });
        }
    }
    group.finish();
}

/// Eight runs of 16 tokens in the same passes, and one after another.
fn runs<B: Backend>(c: &mut Criterion, b: &mut B) {
    const RUNS: usize = 8;
    let mut group = common::group(c, &format!("runs/{}", b.name()));
    for (name, of, layers) in [("7B layer", "7B", 1), ("15M", "15M", 6)] {
        let checkpoint = Checkpoint::new(b, name, of, layers);
        let mut model = checkpoint.load(b);
        group.throughput(flops(&checkpoint, |b, mut model| {
            trainers(b, &model, [1, RUNS, 16], None)[0].step(b, &mut model).expect("a step");
        }));
        for (how, count, runs) in [("in one pass", 1, RUNS), ("one after another", RUNS, 1)] {
            let mut trainers = trainers(b, &model, [count, runs, 16], None);
            group.bench(name, how, |bench| {
                time(bench, b, |b| {
                    for trainer in &mut trainers {
                        trainer.step(b, &mut model).expect("a step");
                    }
                });
            });
        }
    }
    group.finish();
}

/// A forward, of which the rows `rows` are read; with `sites` of all layers captured at them.
struct Forward<B: Backend> {
    model: Model<B>,
    acts: Activations<B>,
    pack: Pack,
    device: B::Pack,
    read: Option<OutputRows<B>>,
    rows: Vec<usize>,
    selection: Option<Selection>,
}

impl<B: Backend> Forward<B> {
    fn new(b: &mut B, model: Model<B>, pack: Pack, rows: Vec<usize>, sites: Option<&[Site]>) -> Self {
        let all: Vec<usize> = (0..model.config.num_hidden_layers).collect();
        Self {
            acts: Activations::new(b, &model.config, None, pack.len(), Save::Layer).expect("memory for a bench"),
            device: b.pack(&pack).expect("memory for a bench"),
            read: OutputRows::new(b, &pack, rows.iter().copied()).expect("memory for a bench"),
            selection: sites.filter(|sites| !sites.is_empty()).map(|sites| Selection::new(sites, &all)),
            model,
            pack,
            rows,
        }
    }

    fn run(&mut self, b: &mut B) {
        let Self { model, acts, pack, device, read, rows, selection } = self;
        let input = Input::new(pack, device).with_output_rows(read.as_ref());
        match selection {
            None => model.forward(b, acts, &input, None, &mut NoTaps),
            Some(selection) => model.forward(b, acts, &input, None, &mut Record::new(selection.clone(), rows.clone())),
        }
        .expect("a forward");
    }
}

/// One way to do some work; what counts is the work of `of`.
fn forward<B: Backend>(
    group: &mut Group<'_>,
    b: &mut B,
    checkpoint: &Checkpoint,
    [how, of]: [&Pack; 2],
    sites: Option<&[Site]>,
    name: &str,
) {
    // The last row of every sequence, but of captures all rows.
    let rows = |pack: &Pack| match sites {
        Some(_) => (0..pack.len()).collect(),
        None => (0..pack.segments().len())
            .filter(|&g| pack.descendants(g).is_empty())
            .map(|g| pack.segments()[g].rows.end - 1)
            .collect::<Vec<_>>(),
    };
    group.throughput(flops(checkpoint, |b, model| Forward::new(b, model, of.clone(), rows(of), None).run(b)));
    let model = checkpoint.load(b);
    let mut pass = Forward::new(b, model, how.clone(), rows(how), sites);
    group.bench(checkpoint.name, name, |bench| time(bench, b, |b| pass.run(b)));
}

fn capture<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("states/{}", b.name()));
    for (name, layers) in [("15M", 6), ("110M", 12)] {
        let checkpoint = Checkpoint::new(b, name, name, layers);
        let pack = &flat(&[256], None);
        for (what, sites) in [("no site", &[][..]), ("resid_post of all layers", &[Site::ResidPost])] {
            forward(&mut group, b, &checkpoint, [pack; 2], Some(sites), what);
        }
    }
    group.finish();
}

fn prefix<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("prefix/{}", b.name()));
    for (name, layers) in [("15M", 6), ("110M", 12)] {
        let checkpoint = Checkpoint::new(b, name, name, layers);
        let (shared, repeated) = (&shared_prefix(256, 8, 16), &flat(&[272; 8], None));
        for (how, pack) in [("shared", shared), ("repeated", repeated)] {
            forward(&mut group, b, &checkpoint, [pack, shared], None, how);
        }
    }
    group.finish();
}

fn models<B: Backend>(c: &mut Criterion, mut b: B) {
    step(c, &mut b);
    runs(c, &mut b);
    capture(c, &mut b);
    prefix(c, &mut b);
}

fn all(c: &mut Criterion) {
    on_devices!(c, models);
}

criterion_group!(benches, all);
criterion_main!(benches);
