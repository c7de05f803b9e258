//! Embedding of tokens and of soft prompts.

use llamaprobe::backend::ops::PromptSite;
use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::{Label, Pack, PackBuilder, Parent, Token};
use llamaprobe::quantization::BlockFormat;

use super::cases::{Case, Set};
use super::device::{self, BEFORE, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, RowResults, acc, compute};
use super::packs::{self, PROMPT, RUNS, VOCAB};
use super::quantized;
use super::simt::recorder::{Recorder, rows};
use super::simt::tables;
use super::simt::tape::Arg::{At, Float, Inside, Int, Long, Null};

/// table, prompt -> out
#[derive(Clone, Debug)]
pub struct Embed {
    pub pack: Pack,
    pub vocab: usize,
    pub width: usize,
    pub site: PromptSite,
    pub runs: usize,
    /// What the table's rows are multiplied by.
    pub scale: f64,
}

impl Embed {
    /// Where the prompt's row of a virtual token of a row of the pack begins.
    fn at(&self, row: usize, token: u32) -> usize {
        self.pack.run_of(row).unwrap() * self.site.stride + self.site.offset + token as usize * self.width
    }
}

impl Operation for Embed {
    fn inputs(&self) -> Vec<Array> {
        let table = compute("table", self.vocab * self.width).gradient_added();
        vec![table, acc("prompt", self.runs * self.site.stride).gradient_added()]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.pack.len() * self.width).gradient(Role::Acc)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let rows = self.pack.tokens().iter().enumerate().flat_map(|(row, token)| match token {
            Token::Id(t) => {
                let row = &inputs[0][*t as usize * self.width..][..self.width];
                row.iter().map(|x| p.c(x * p.c(self.scale))).collect()
            }
            Token::Virtual(v) => inputs[1][self.at(row, *v)..][..self.width].to_vec(),
        });
        vec![rows.collect()]
    }

    fn naive_backward(&self, p: Precision, _: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        for (i, x) in d_out.iter().enumerate() {
            let (row, c) = (i / self.width, i % self.width);
            match self.pack.tokens()[row] {
                Token::Id(t) => p.add(&mut d[0][t as usize * self.width + c], p.a(x * p.c(self.scale))),
                Token::Virtual(v) => p.add(&mut d[1][self.at(row, v) + c], *x),
            }
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (table, prompt) = (device::weight(b, &inputs[0]), device::acc(b, &inputs[1]));
        let pack = &b.pack(&self.pack).unwrap();
        let prompt = (self.runs > 0).then_some((&prompt, self.site));
        let (out, table, &Self { width, scale, .. }) = (&mut out.acc[0], &table, self);
        b.embed_fwd(ops::EmbedFwd { out, pack, table, prompt, width, scale });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let (d_out, pack) = (&device::acc(b, &given.d_outputs[0]), &b.pack(&self.pack).unwrap());
        let (mut d_table, mut d_prompt) = (device::inside(b, &given.start[0]), device::acc(b, &given.start[1]));
        let &Self { site, width, scale, .. } = self;
        b.embed_bwd_table(ops::EmbedBwdTable { d_table: &mut d_table, offset: BEFORE, d_out, pack, width, scale });
        b.embed_bwd_prompt(ops::EmbedBwdPrompt { d_prompt: &mut d_prompt, d_out, pack, site, width });
        vec![Some(device::read_inside(b, &d_table, given.len(0))), Some(device::read_acc(b, &d_prompt, given.len(1)))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let &Self { ref pack, width, site: PromptSite { offset, stride, .. }, scale, .. } = self;
        let tokens = pack.tokens().iter().map(|token| match token {
            Token::Id(id) => *id as i32,
            Token::Virtual(p) => -(*p as i32) - 1,
        });
        let tokens: Vec<i32> = tokens.collect();
        let run_of = |row: usize| pack.run_of(row).map_or(-1, |run| run as i32);
        let runs: Vec<i32> = (0..pack.len()).map(run_of).collect();
        let (table, prompt) = (At(r.tape.compute(&case.inputs[0])), At(r.tape.acc(&case.inputs[1])));
        let out = At(r.output(0, pack.len() * width, Role::Acc));
        let sizes = [Int(width), Long(stride), Long(offset)];
        let of_rows = [At(r.tape.ints(&tokens)), At(r.tape.ints(&runs)), Int(pack.len())];
        let scale = [Float(scale)];
        r.run("embed_fwd", rows(pack.len()), &[&[out, table, prompt], &of_rows[..], &sizes, &scale].concat());

        let d_out = At(r.tape.acc(&case.d_outputs[0]));
        let ids = tokens.iter().copied().enumerate().filter(|(_, token)| *token >= 0);
        let (ids, starts, order) = tables::groups(ids);
        let count = ids.len();
        let d_table = Inside(r.sum(1, case.inputs[0].len(), BEFORE), 4 * BEFORE);
        let lists = [ids, starts, order].map(|list| At(r.tape.ints(&list)));
        let args = [&[d_table, d_out], &lists[..], &[Int(count), Int(width)], &scale].concat();
        r.run("embed_bwd_table", rows(count), &args);

        let ids = tokens.iter().zip(&runs).map(|(&token, &run)| (-token - 1, run)).enumerate();
        let (ids, starts, order) = tables::groups(ids.filter(|(_, (p, _))| *p >= 0));
        let count = ids.len();
        let d_prompt = At(r.sum(2, case.inputs[1].len(), 0));
        let (ids, runs): (Vec<i32>, Vec<i32>) = ids.into_iter().unzip();
        let lists = [ids, runs, starts, order].map(|list| At(r.tape.ints(&list)));
        let args = [&[d_prompt, d_out], &lists[..], &[Int(count)], &sizes].concat();
        r.run("embed_bwd_prompt", rows(count), &args);
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[], gradients: &[false, false] })
    }

    fn select(&self, _: &[usize], pack: Option<Pack>) -> Option<Self> {
        pack.map(|pack| Self { pack, ..self.clone() })
    }
}

/// A quantised table -> out
#[derive(Clone, Debug)]
pub struct EmbedQuantized {
    pub pack: Pack,
    pub format: BlockFormat,
    pub width: usize,
    pub scale: f64,
}

impl Operation for EmbedQuantized {
    fn inputs(&self) -> Vec<Array> {
        vec![]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.pack.len() * self.width)]
    }

    fn naive_forward(&self, p: Precision, _: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let table = quantized::values(self.format, [VOCAB, self.width]);
        let rows = self.pack.tokens().iter().flat_map(|token| {
            let Token::Id(t) = *token else { panic!("a virtual token") };
            table[t as usize * self.width..][..self.width].iter().map(|&x| p.c(p.c(x) * p.c(self.scale)))
        });
        vec![rows.collect()]
    }

    fn forward<B: Backend>(&self, b: &mut B, _: &[Vec<f64>], out: &mut Outputs<B>) {
        let table = &quantized::weight(b, self.format, [VOCAB, self.width]);
        let pack = &b.pack(&self.pack).unwrap();
        let (out, &Self { width, scale, .. }) = (&mut out.acc[0], self);
        b.embed_fwd(ops::EmbedFwd { out, pack, table, prompt: None, width, scale });
    }

    fn launch(&self, _: &Case, r: &mut Recorder<'_>) -> bool {
        let id = |token: &Token| if let Token::Id(id) = *token { id as i32 } else { panic!("a virtual token") };
        let tokens: Vec<i32> = self.pack.tokens().iter().map(id).collect();
        let out = At(r.output(0, tokens.len() * self.width, Role::Acc));
        let table = quantized::args(r.tape, &quantized::view(self.format, [VOCAB, self.width]));
        let of_rows = [Null, At(r.tape.ints(&tokens)), Null, Int(tokens.len())];
        let places = [Long(0), Long(0), Float(self.scale)];
        r.run("embed_quantized_fwd", rows(tokens.len()), &[&[out], &table[..], &of_rows, &places].concat());
        true
    }
}

fn quantized_cases() -> Vec<Case> {
    let case = |(format, width, scale)| {
        let op = EmbedQuantized { pack: packs::ragged(), format, width, scale };
        Case::new(format!("embed {format} {width}"), op)
    };
    [(BlockFormat::NF4, 40, 1.0), (BlockFormat::Q8_0, 64, 8.0), (BlockFormat::Q6K, 256, 1.0)].map(case).into()
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    let quantized = if set == Set::Small { quantized_cases() } else { vec![] };
    [float_cases(set), quantized].concat()
}

fn float_cases(set: Set) -> Vec<Case> {
    match set {
        Set::Small => {
            let none = PromptSite { offset: 0, stride: 0, rows: 0 };
            let prompts = PromptSite { offset: 4, stride: 6 + PROMPT * 5, rows: PROMPT };
            let base = Embed { pack: packs::ragged(), vocab: VOCAB, width: 5, site: none, runs: 0, scale: 1.0 };
            let adapted = Embed { pack: packs::trees(), site: prompts, runs: RUNS, ..base.clone() };
            let scaled = Embed { scale: 5f64.sqrt(), ..adapted.clone() };
            vec![Case::new("embed", base), Case::new("embed virtual", adapted), Case::new("embed scaled", scaled)]
        }
        Set::Forest => {
            let site = PromptSite { offset: 1, stride: 40, rows: PROMPT };
            let case = |(name, scale)| {
                let op = Embed { pack: packs::large_forest(), vocab: VOCAB, width: 12, site, runs: RUNS, scale };
                Case::new(name, op)
            };
            [("embed", 1.0), ("embed scaled", 12f64.sqrt())].map(case).into()
        }
        Set::Large | Set::Rows => vec![],
    }
}

/// One row of run 0 that is virtual token 1.
fn one_virtual_row() -> Pack {
    let mut b = PackBuilder::default();
    b.push(&[Token::Virtual(1)], Parent::None, Some(0), Label::Virtual);
    b.build()
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "embed_fwd: virtual token 1 and no prompt",
            call: |b| {
                let ([mut out], [], [table]) = device::buffers(b, [4], [], [8]);
                let pack = &b.pack(&one_virtual_row()).unwrap();
                b.embed_fwd(ops::EmbedFwd { out: &mut out, pack, table: &table, prompt: None, width: 4, scale: 1.0 });
            },
        },
        Refusal {
            says: "embed_fwd: table has 6 elements, needs 24",
            call: |b| {
                let ([mut out], [], [table]) = device::buffers(b, [6], [], [6]);
                let pack = &b.pack(&packs::flat(&[2])).unwrap();
                b.embed_fwd(ops::EmbedFwd { out: &mut out, pack, table: &table, prompt: None, width: 3, scale: 1.0 });
            },
        },
        Refusal {
            says: "embed_bwd_table: d_table has 25 elements, needs 26",
            call: |b| {
                let ([mut d_table, d_out], [], []) = device::buffers(b, [25, 6], [], []);
                let pack = &b.pack(&packs::flat(&[2])).unwrap();
                let (d_table, d_out) = (&mut d_table, &d_out);
                b.embed_bwd_table(ops::EmbedBwdTable { d_table, offset: 2, d_out, pack, width: 3, scale: 1.0 });
            },
        },
        Refusal {
            says: "embed_bwd_prompt: a run of the prompt has 7 elements, needs 9",
            call: |b| {
                let ([mut d_prompt, d_out], [], []) = device::buffers(b, [7, 4], [], []);
                let pack = &b.pack(&one_virtual_row()).unwrap();
                let (d_prompt, d_out, site) = (&mut d_prompt, &d_out, PromptSite { offset: 1, stride: 7, rows: 2 });
                b.embed_bwd_prompt(ops::EmbedBwdPrompt { d_prompt, d_out, pack, site, width: 4 });
            },
        },
    ]
}
