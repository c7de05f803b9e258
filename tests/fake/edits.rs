//! Passes with edits, and passes that start at a layer.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::cuda::Cuda;
use llamaprobe::backend::{AccElement, Backend};
use llamaprobe::hooks::edit::{Edit, EditOp, EditRows, Positions, Values};
use llamaprobe::hooks::{Naming, Record, Selection, Site};
use llamaprobe::model::{EditSet, Input, OutputRows, PassEdits, Start, StartRows};
use llamaprobe::pack::{Label, Sequence, forest};

use super::{child, cuda, small_model};

/// What comes of a pass that starts at each layer, from rows of the host and of the device, under edits of every kind.
fn edited_starts<B: Backend>(b: &mut B) -> Vec<f32> {
    let (model, mut acts) = small_model(b);
    let pack = forest(&[Sequence::ids(&[3, 9, 4, 1, 7], None, Label::Text)], 1).pack;
    let device = b.pack(&pack).expect("a pack");
    let resid: Vec<f32> = (0..5 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
    let vector: Vec<f32> = (0..32).map(|i| (i as f32 * 0.21).cos()).collect();
    let edits: Vec<Edit> = [
        (Site::ResidPost, EditOp::Add(Values::one(vector.clone()))),
        (Site::Z, EditOp::ProjectOut(vector.clone())),
        (Site::AttnOut, EditOp::Scale(0.5)),
        (Site::ResidMid, EditOp::ProjectOut(vector)),
        (Site::LN2_OUT, EditOp::Zero),
    ]
    .map(|(site, op)| Edit::new(Selection::new(&[site], &[0, 1, 2]), Positions::All, op))
    .into();
    let set = EditSet::new(b, &model.config, &edits).expect("edits");
    let rows = EditRows(edits.iter().map(|_| vec![(1, 0), (4, 0)]).collect());
    let output = OutputRows::new(b, &pack, [2, 4]).expect("output rows");
    let edited = PassEdits::new(b, &set, &rows, output.as_ref()).expect("edits of a pass");
    let mut x = b.acc(resid.len()).expect("memory");
    let elements: Vec<B::Element> = resid.iter().map(|&x| B::Element::from_f64(f64::from(x))).collect();
    b.upload(&mut x, 0, &elements).expect("upload");
    let index = b.index(&[4, 0, 2, 1, 3]).expect("memory");
    let mut found = Vec::new();
    for layer in 0..=3 {
        for resid in [StartRows::Host(&resid), StartRows::Device { x: &x, rows: &index }] {
            let hooks =
                Selection::parse("resid_post,final_norm", &[0, 1, 2], &Naming::tl(&model.config)).expect("sites");
            let mut record = Record::new(hooks, vec![2, 4]);
            let input = Input::new(&pack, &device).with_output_rows(output.as_ref()).edited(Some(&edited));
            model.forward(b, &mut acts, &input.starting(Start { layer, resid }), None, &mut record).expect("a forward");
            found.extend(record.iter().flat_map(|(_, _, _, rows)| rows.to_vec()));
        }
    }
    found
}

#[test]
#[ignore = "started on the fake driver"]
fn edited_passes() {
    let expected = edited_starts(&mut Cpu::new(Dtype::F32));
    let mut gpu = Cuda::open(0, Dtype::F32, &cuda::settings()).expect("a device");
    let found = edited_starts(&mut gpu);
    let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.len() == expected.len() && off < 1e-4, "off by {off}");
}

#[test]
fn edited_passes_from_any_layer_are_those_of_the_cpu() {
    child("edits::edited_passes");
}
